"""`holdfast run`: the manual trigger."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker import typed
from worker.cli import parse
from worker.cli.exits import ExitCode
from worker.cli.output import emit, note
from worker.cli.registry import check_queue, load
from worker.cli.services import services
from worker.errors import JobNotFound

if TYPE_CHECKING:
    from celery.result import AsyncResult


def run(
    task: Annotated[str, typer.Argument(help="The task's name.")],
    args: Annotated[
        list[str] | None,
        typer.Argument(
            help="Its arguments: JSON where they are JSON, text otherwise. Put -- before one that starts with a dash."
        ),
    ] = None,
    kwargs: Annotated[
        dict[str, Any] | None,
        typer.Option(parser=typed.json_object, metavar="JSON", help="Its keyword arguments, a JSON object."),
    ] = None,
    delay: Annotated[
        timedelta | None,
        typer.Option("--in", parser=parse.duration, metavar="DURATION", help="Run it after this long: 10s, 5m, 1h30m."),
    ] = None,
    at: Annotated[
        datetime | None,
        typer.Option(parser=parse.moment, metavar="TIME", help="Run it at this time, ISO 8601; UTC unless it says otherwise."),
    ] = None,
    expires: Annotated[
        timedelta | None,
        typer.Option(parser=parse.duration, metavar="DURATION", help="Give up if it has not started after this long."),
    ] = None,
    queue: Annotated[str | None, typer.Option(metavar="NAME", help="The queue; by default the task's own.")] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="0 goes first, 9 last; by default 5.")] = None,
    key: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Idempotency key: a second call with it finds the first one's job.")
    ] = None,
    caller: Annotated[
        str | None, typer.Option(metavar="NAME", help="On whose behalf; idempotency keys are the caller's own.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for its end and print the result; exits with 1 if it did not succeed.")
    ] = False,
    timeout: Annotated[timedelta, typer.Option(parser=parse.duration, metavar="DURATION", help="Longest time to wait.")] = "60s",  # type: ignore[assignment]
    as_json: Annotated[bool, typer.Option("--json", help="Print the job's record as one JSON document.")] = False,
) -> None:
    """Enqueue a task and print the job's id; its name, its arguments and the queue are checked first."""
    if delay is not None and at is not None:
        raise ValueError("give either --in or --at, not both")
    with services():
        from worker.engine.schemas import check_arguments, find_task
        from worker.ledger.message import DOOR

        app = load()
        found = find_task(app, task)
        positional, named = [typed.json_value(text) for text in args or ()], kwargs or {}
        check_arguments(found, positional, named)
        if queue is not None:
            check_queue(queue)
        given = {
            "countdown": parse.seconds(delay), "eta": at, "expires": parse.seconds(expires),
            "queue": queue, "priority": priority, "idempotency_key": key, "caller": caller, "headers": {DOOR: "cli"},
        }  # fmt: skip
        result = found.apply_async(positional, named, **{name: value for name, value in given.items() if value is not None})
        if wait:
            _await(result, timeout, as_json)
        elif as_json:
            emit(_record(result.id))
        else:
            print(result.id)


def _await(result: AsyncResult[Any], timeout: timedelta, as_json: bool) -> None:
    """Wait for the job's end and print what came of it."""
    from celery.exceptions import TimeoutError as WaitedEnough

    note(f"job {result.id}")
    try:
        value = result.get(timeout=timeout.total_seconds(), propagate=False)
    except WaitedEnough:
        if as_json:
            emit(_record(result.id))
        note(f"job {result.id} has not ended within {timeout.total_seconds():g} s; it goes on")
        raise typer.Exit(ExitCode.NO) from None
    if as_json:
        emit(_record(result.id))
    if result.state != "SUCCESS":
        note(f"job {result.id}: {_error(result, value)}")
        raise typer.Exit(ExitCode.NO)
    if not as_json:
        print(json.dumps(value, default=str, ensure_ascii=False))


def _error(result: AsyncResult[Any], value: Any) -> str:
    told = _record(result.id)
    return f"{told['state']}: {told['error']}" if told.get("error") else f"{result.state.lower()}: {value}"


def _record(job_id: str) -> dict[str, Any]:
    """Return the job's record; one that is not durable has none but its id."""
    from worker.db import statement
    from worker.ledger import manage

    try:
        with statement() as conn:
            return manage.show(conn, job_id)
    except JobNotFound:
        return {"id": job_id, "durable": False}
