"""The `holdfast` program: its commands, and how a failure is told."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated

import typer

from worker.cli import (
    cache,
    callers,
    db,
    events,
    flags,
    jobs,
    limits,
    locks,
    operators,
    options,
    queues,
    schedules,
    streams,
    webhooks,
    workers,
)  # fmt: skip
from worker.cli.beat import beat
from worker.cli.exits import ExitCode, code_of, epilog
from worker.cli.flower import flower
from worker.cli.gateway import gateway
from worker.cli.importing import import_
from worker.cli.output import note
from worker.cli.relay import relay
from worker.cli.run import run
from worker.cli.stats import stats
from worker.cli.top import top
from worker.cli.up import up
from worker.cli.usage import usage
from worker.cli.version import version
from worker.cli.worker import worker
from worker.errors import HoldfastError

app = typer.Typer(
    name="holdfast",
    no_args_is_help=True,
    help="Durable jobs on Celery: Postgres is the record, Redis the fast path.",
    epilog=epilog(),
    pretty_exceptions_enable=False,
)

#: What passes on to Celery whatever Holdfast does not know itself.
_PASSING_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

_RUN, _LOOK = "Run the system", "Work with it"


def demo(
    count: Annotated[int, typer.Option("--jobs", min=1, help="Jobs to push through.")] = 5000,
    seed: Annotated[int | None, typer.Option(help="Repeat a run's faults; by default a new seed, which is printed.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Go on afterwards, with the console, until Ctrl-C.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Push jobs through every entrance, break Redis and workers meanwhile, and count what is lost."""
    raise typer.Exit(import_module("worker.cli.demo").run_demo(jobs=count, seed=seed, as_json=as_json, keep=keep))


app.command(rich_help_panel=_RUN)(up)
app.command(rich_help_panel=_RUN)(demo)
app.command(rich_help_panel=_RUN, context_settings=_PASSING_ON)(worker)
app.command(rich_help_panel=_RUN, context_settings=_PASSING_ON)(beat)
app.command(rich_help_panel=_RUN)(relay)
app.command(rich_help_panel=_RUN)(gateway)
app.command(rich_help_panel=_RUN, context_settings=_PASSING_ON)(flower)
app.command(rich_help_panel=_LOOK)(run)
app.command("import", rich_help_panel=_LOOK)(import_)
app.command(rich_help_panel=_LOOK)(stats)
app.command(rich_help_panel=_LOOK)(usage)
app.command(rich_help_panel=_LOOK)(top)
for _name, _group in (
    ("jobs", jobs), ("queues", queues), ("workers", workers), ("schedules", schedules), ("cache", cache),
    ("limits", limits), ("locks", locks), ("flags", flags), ("callers", callers), ("streams", streams), ("events", events),
    ("webhooks", webhooks), ("operators", operators), ("db", db),
):  # fmt: skip
    app.add_typer(_group.app, name=_name, rich_help_panel=_LOOK)
app.command(rich_help_panel=_LOOK)(version)


def main() -> None:
    """Run the command line of this process and exit."""
    sys.exit(invoke(None))


def invoke(args: list[str] | None) -> int:
    """Run one command line, telling a failure in one line on stderr; return the exit code."""
    try:
        code = app(args, prog_name="holdfast", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as exc:
        if text := exc.format_message():  # without one, the help of a group has been printed
            note(_usage(exc, text))
        return ExitCode.USAGE
    except HoldfastError as exc:
        note(_one_line(str(exc)))
        return code_of(exc)
    except ValueError as exc:
        if type(exc) is not ValueError:  # a decoder's, say: a fault of ours
            raise
        note(_one_line(str(exc)))
        return ExitCode.USAGE
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.NO
    return code if isinstance(code, int) else ExitCode.OK


def _usage(exc: typer.TyperException, text: str) -> str:
    """Say what is wrong with the command line, with the value that is."""
    text = text.replace("Value error, ", "")
    details = getattr(exc.__cause__, "errors", None)  # of pydantic, which reads the values
    if callable(details) and (value := details()[0].get("input")) is not None and repr(value) not in text:
        text = f"{text}, not {value!r}"
    context = getattr(exc, "ctx", None)
    where = f" (see `{context.command_path} --help`)" if context is not None else ""
    return f"{_one_line(text)}{where}"


def _one_line(text: str) -> str:
    return " ".join(text.split("\n")).strip()
