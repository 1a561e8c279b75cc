"""`holdfast flags`: see and set flags, and who changed which; one called `task:NAME`, say, is a switch of the jobs."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer

from worker.cli import options
from worker.cli.output import emit, record, table
from worker.cli.services import services

app = typer.Typer(no_args_is_help=True, help="Set flags and switches, and see who did.")

_COLUMNS = {"name": "name", "rule": "rule", "parked": "parked jobs", "updated_at": "set (UTC)", "actor": "by", "note": "note"}
_CHANGES = {"id": "no.", "changed_at": "when (UTC)", "name": "name", "actor": "by", "was": "was", "is": "is", "note": "note"}

_Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The flag; a switch is called task:NAME, queue:NAME, caller:NAME or door:NAME.")
]
_By = Annotated[str | None, typer.Option("--by", metavar="PERSON", help="Who does it; by default the user of this machine.")]
_Note = Annotated[str, typer.Option("--note", metavar="TEXT", help="Why; kept in the history.")]
_Listed = typer.Option(metavar="ATTRIBUTE=VALUE", show_default=False)


@app.command("ls")
def ls(as_json: options.AsJson = False) -> None:
    """List the flags with their rules, and how many jobs each holds back."""
    with services():
        from worker.db import statement
        from worker.ledger import flags

        with statement() as conn:
            rows = flags.listed(conn)
    emit(rows) if as_json else table(rows, _COLUMNS, cut=("rule", "note"))


@app.command("set")
def set_(
    name: _Name,
    value: Annotated[str, typer.Argument(metavar="on|off", help="What it is for those that no option below speaks of.")],
    percent: Annotated[
        float | None, typer.Option("--percent", min=0, max=100, help="On for this part of the keys only; of jobs, for a switch.")
    ] = None,
    allow: Annotated[list[str] | None, _Listed] = None,
    deny: Annotated[list[str] | None, _Listed] = None,
    by: _By = None,
    why: _Note = "",
    as_json: options.AsJson = False,
) -> None:
    """Set a flag, new or in the place of the one with its name; it holds in every process within a second.

    A switch that is off parks its jobs: they wait without an attempt, and go on when it is on again. `--allow` keeps it on for
    an attribute's value (task, queue, caller, door or key), `--deny` keeps it off; both may be repeated.
    """
    from worker.live import flag
    from worker.live.flags import parse_listed

    if value not in ("on", "off"):
        raise ValueError(f"a flag is on or off, not {value!r}; a part of the keys is --percent")
    rule = flag(name, on=value == "on", share=None if percent is None else round(percent * 100),
                allow=parse_listed(allow or ()), deny=parse_listed(deny or ()))  # fmt: skip
    with services():
        from worker.db import statement
        from worker.ledger import flags

        with statement() as conn:
            kept = flags.put(conn, rule, actor=by or getpass.getuser(), note=why)
    emit({"name": kept.name, **kept.plain(), "revision": kept.revision}) if as_json else record([(kept.name, str(kept))])


@app.command("rm")
def rm(name: _Name, by: _By = None, why: _Note = "") -> None:
    """Remove a flag; what it held back goes on."""
    with services():
        from worker.db import statement
        from worker.ledger import flags

        with statement() as conn:
            flags.remove(conn, name, actor=by or getpass.getuser(), note=why)
    print(f"removed: {name}")


@app.command("history")
def history(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The flag; by default all.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Changes to list at most.")] = 50,
    as_json: options.AsJson = False,
) -> None:
    """List who changed which flag, when, from what and to what, the newest first."""
    with services():
        from worker.db import statement
        from worker.ledger import flags

        with statement() as conn:
            rows = flags.history(conn, name, limit=limit)
    if as_json:
        emit(rows)
    else:
        told = flags.told
        shown = [{**row, "was": told(row["name"], row["before"]), "is": told(row["name"], row["after"])} for row in rows]
        table(shown, _CHANGES, cut=("was", "is", "note"))

