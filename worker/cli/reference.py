"""Write the reference pages that follow from the code: `python -m worker.cli.reference`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Said at the head of each page.
_MADE = "<!-- Made by `python -m worker.cli.reference`; not edited by hand. -->"
_FOLDER = Path(__file__).parents[2] / "docs" / "reference"

#: How a JSON schema's limits are told.
_LIMITS = {"minimum": "at least {}", "exclusiveMinimum": "more than {}", "maximum": "at most {}"}


def pages() -> dict[str, str]:
    """Return each page's text by its file name."""
    return {"cli.md": cli_page(), "settings.md": settings_page()}


# ---- commands


def cli_page() -> str:
    """Return the page of commands."""
    import typer

    from worker.cli.exits import MEANINGS
    from worker.cli.program import app

    root: Any = typer.main.get_command(app)
    lines = [
        _MADE,
        "",
        "# Commands",
        "",
        root.help,
        "",
        _INTRODUCTION,
        "",
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---|---|",
    ]
    lines += [f"| {code.value} | {meaning} |" for code, meaning in MEANINGS.items()]
    for name, command in root.commands.items():
        lines += ["", *_command(f"holdfast {name}", command, 2)]
    return "\n".join(lines) + "\n"


_INTRODUCTION = """\
Data goes to stdout and the rest to stderr. Lists and records are tables for people, or with `--json` one JSON document, whose
moments are ISO 8601 in UTC. Celery's own commands, `celery -A worker.app …`, work unchanged beside these.

Without `DATABASE_URL`, `REDIS_URL` and `CACHE_URL` a command starts or joins the embedded servers of the folder and migrates them
by itself; real servers are migrated by `holdfast db upgrade` alone."""


def _command(path: str, command: Any, depth: int) -> Iterator[str]:
    """Yield the lines on a command and those below it."""
    commands = getattr(command, "commands", {})
    yield f"{'#' * depth} `{path}`"
    yield ""
    yield _text(command.help)
    for name, below in commands.items():
        yield ""
        yield from _command(f"{path} {name}", below, depth + 1)
    if not commands:
        yield from _usage(path, command)


def _usage(path: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    yield ""
    yield "```"
    yield " ".join([path, *(["[OPTIONS]"] if options else []), *(_argument(p) for p in arguments)])
    yield "```"
    if arguments or options:
        yield ""
        yield "| option | meaning | default |"
        yield "|---|---|---|"
        yield from (_row(p) for p in [*arguments, *options])


def _argument(param: Any) -> str:
    name = (param.metavar or param.name.upper()).strip("[].")
    name += "…" if param.nargs == -1 else ""
    return name if param.required else f"[{name}]"


def _row(param: Any) -> str:
    if param.param_type_name == "argument":
        name = f"`{_argument(param)}`"
    else:
        value = "" if param.is_flag else f" {param.metavar or _kind(param)}"
        name = ", ".join(f"`{n}{value if n.startswith('--') else ''}`" for n in [*param.opts, *param.secondary_opts])
    shown = "" if param.default in (None, False, ()) else f"`{str(param.default).lower() if param.is_flag else param.default}`"
    return f"| {_cell(name)} | {_cell(_text(param.help or ''))} | {_cell(shown)} |"


def _kind(param: Any) -> str:
    return "N" if param.default is None or isinstance(param.default, int) else "TEXT"


# ---- settings


def settings_page() -> str:
    """Return the page of settings."""
    from worker.settings import Settings

    properties = Settings.model_json_schema(by_alias=False)["properties"]
    lines = [_MADE, "", "# Settings", "", _ABOUT_SETTINGS, "", "| variable | meaning | default | limits |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        alias: Any = field.validation_alias
        variable = alias.choices[0] if alias is not None else f"HOLDFAST_{name.upper()}"
        limits = ", ".join(
            form.format(_number(properties[name][key])) for key, form in _LIMITS.items() if key in properties[name]
        )
        lines.append(f"| `{variable}` | {_cell(field.description or '')} | {_default(field.default)} | {limits} |")
    return "\n".join(lines) + "\n"


_ABOUT_SETTINGS = """\
Every setting is an environment variable, read and checked once when a process starts. `DATABASE_URL`, `REDIS_URL` and `CACHE_URL`
also go by their names with `HOLDFAST_` before; they are set all three, or none for the embedded servers of the folder."""


def _default(value: Any) -> str:
    text = ",".join(value) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else "empty"


def _number(value: float) -> str:
    return f"{value:,g}" if value < 1_000_000 else f"{value:,}"


# ---- text


def _text(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write the pages that have changed."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        path = _FOLDER / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(path, file=sys.stderr)


if __name__ == "__main__":
    main()
