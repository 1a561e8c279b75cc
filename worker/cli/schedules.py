"""`holdfast schedules`: see, add, change and fire periodic jobs."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker import typed
from worker.cli import options, parse
from worker.cli.output import emit, record, table
from worker.cli.registry import check_queue, load
from worker.cli.services import services

if TYPE_CHECKING:
    from worker.ledger.schedules import Listed

app = typer.Typer(no_args_is_help=True, help="See, add, change and fire periodic jobs.")

_COLUMNS = {
    "name": "name", "status": "status", "when": "when", "task": "task", "catch_up": "catch up", "source": "source",
    "last_tick": "last (UTC)", "next_tick": "next (UTC)",
}  # fmt: skip

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule.")]
_Crontab = Annotated[str | None, typer.Option("--cron", metavar="FIELDS", help='Five crontab fields: "0 8 * * mon-fri".')]
_Every = Annotated[
    timedelta | None,
    typer.Option("--every", parser=parse.duration, metavar="DURATION", help="An interval: 30s, 5m, 1h30m."),
]
_Kwargs = Annotated[
    dict[str, Any] | None,
    typer.Option("--kwargs", parser=typed.json_object, metavar="JSON", help="Keyword arguments, a JSON object."),
]
_Zone = Annotated[
    str | None, typer.Option("--timezone", metavar="ZONE", help="Zone of the crontab, such as Europe/Berlin; by default UTC.")
]
_CatchUp = Annotated[
    str | None,
    typer.Option("--catch-up", metavar="HOW", help="What to do about missed ticks: skip, once or all; by default once."),
]
_Queue = Annotated[str | None, typer.Option("--queue", metavar="QUEUE", help="The queue; by default the task's own.")]
_Priority = Annotated[int | None, typer.Option("--priority", min=0, max=9, help="0 goes first, 9 last; by default 5.")]
_Expires = Annotated[
    timedelta | None,
    typer.Option("--expires", parser=parse.duration, metavar="DURATION", help="Give a job up if it has not started after this."),
]


@app.command("ls")
def ls(as_json: options.AsJson = False) -> None:
    """List the schedules with their next ticks."""
    with services():
        from worker.ledger import schedules

        rows = schedules.listed()
    if as_json:
        emit(rows)
    else:
        table(
            [{**row, "status": "on" if row["enabled"] else "paused", "when": _when(row)} for row in rows],
            _COLUMNS,
            cut=("when", "task"),
        )


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    task: Annotated[str, typer.Argument(help="The task's name.")],
    args: Annotated[
        list[str] | None, typer.Argument(help="Its arguments: JSON where they are JSON, text otherwise.", show_default=False)
    ] = None,
    crontab: _Crontab = None,
    every: _Every = None,
    kwargs: _Kwargs = None,
    timezone: _Zone = None,
    catch_up: _CatchUp = None,
    queue: _Queue = None,
    priority: _Priority = None,
    expires: _Expires = None,
    paused: Annotated[bool, typer.Option("--paused", help="Add it without letting it tick.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Add a schedule with --cron or --every; the task and its arguments are checked first."""
    with services():
        from worker.db import statement
        from worker.engine.schemas import check_arguments, find_task
        from worker.ledger import schedules

        positional = [typed.json_value(text) for text in args or ()]
        check_arguments(find_task(load(), task), positional, kwargs or {})
        spec = schedules.Spec(
            name, task, positional, kwargs or {}, _sending(queue, priority, expires), crontab, parse.seconds(every),
            timezone or "UTC", not paused, catch_up or "once",
        )  # fmt: skip
        with statement() as conn:
            row = schedules.add(conn, spec)
    _tell(row, as_json)


@app.command("edit")
def edit(
    name: _Name,
    task: Annotated[str | None, typer.Option("--task", metavar="TASK", help="The task's name.")] = None,
    args: Annotated[Any, typer.Option("--args", parser=typed.json_list, metavar="JSON", help="Arguments, a JSON list.")] = None,
    kwargs: _Kwargs = None,
    crontab: _Crontab = None,
    every: _Every = None,
    timezone: _Zone = None,
    catch_up: _CatchUp = None,
    queue: _Queue = None,
    priority: _Priority = None,
    expires: _Expires = None,
    as_json: options.AsJson = False,
) -> None:
    """Change a schedule; what is not given stays. A new timing holds from now on."""
    given = {"task": task, "args": args, "kwargs": kwargs, "crontab": crontab, "every_s": parse.seconds(every),
             "timezone": timezone, "catch_up": catch_up}  # fmt: skip
    changes: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    sending = _sending(queue, priority, expires, check=False)
    if not changes and not sending:
        raise ValueError(f"what to change about schedule {name!r}? see `holdfast schedules edit --help`")
    with services():
        from worker.db import statement
        from worker.engine.schemas import check_arguments, find_task
        from worker.ledger import schedules

        _sending(queue, priority, expires)
        with statement() as conn:
            row = schedules.get(conn, name)
        if {"task", "args", "kwargs"} & changes.keys():
            called = {**row, **changes}
            check_arguments(find_task(load(), called["task"]), called["args"], called["kwargs"])
        if sending:
            changes["options"] = {**row["options"], **sending}
        with statement() as conn:
            row = schedules.edit(conn, name, **changes)
    _tell(row, as_json)


@app.command("pause")
def pause(name: _Name) -> None:
    """Let a schedule tick no more; ticks of the pause are not made up for."""
    _enable(name, False)


@app.command("resume")
def resume(name: _Name) -> None:
    """Let a paused schedule tick again, from now on."""
    _enable(name, True)


@app.command("rm")
def rm(name: _Name) -> None:
    """Remove a schedule; jobs it has made stay."""
    with services():
        from worker.db import statement
        from worker.ledger import schedules

        with statement() as conn:
            schedules.remove(conn, name)
    print(f"removed: {name}")


@app.command("fire")
def fire(name: _Name, as_json: options.AsJson = False) -> None:
    """Run a schedule's task now, also of a paused one, and print the job's id; its ticks are not touched."""
    with services():
        app = load()
        from worker.engine import beat

        job_id = beat.fire(app, name)
    if as_json:
        emit({"id": job_id})
    else:
        print(job_id)


def _enable(name: str, enabled: bool) -> None:
    with services():
        from worker.db import statement
        from worker.ledger import schedules

        with statement() as conn:
            schedules.set_enabled(conn, name, enabled)
    print(f"{'resumed' if enabled else 'paused'}: {name}")


def _sending(queue: str | None, priority: int | None, expires: timedelta | None, *, check: bool = True) -> dict[str, Any]:
    if check and queue is not None:
        check_queue(queue)
    given = {"queue": queue, "priority": priority, "expires": parse.seconds(expires)}
    return {name: value for name, value in given.items() if value is not None}


def _when(row: Listed) -> str:
    return f"every {row['every_s']:g} s" if row["crontab"] is None else f"{row['crontab']} ({row['timezone']})"


def _tell(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(row)
    else:
        record(row.items())
