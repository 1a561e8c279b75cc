"""`holdfast queues`: how full each queue is, pausing one, and its window."""

from __future__ import annotations

from typing import Annotated

import typer

from worker.cli import options
from worker.cli.output import emit, table
from worker.cli.registry import check_queue
from worker.cli.services import services

app = typer.Typer(no_args_is_help=True, help="Look at queues, pause and resume them, set their windows.")

_COLUMNS = {"queue": "queue", "status": "status", "scheduled": "scheduled", "backlog": "in Postgres", "sent": "sent",
            "running": "running", "in_redis": "in Redis", "window": "window", "oldest": "oldest due (UTC)"}  # fmt: skip

_Name = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue.")]


@app.command("ls")
def ls(as_json: options.AsJson = False) -> None:
    """List the queues with their counts; `in Redis` is empty while Redis is away."""
    with services():
        from worker.db import statement
        from worker.ledger import manage

        with statement() as conn:
            rows = manage.list_queues(conn)
    if as_json:
        emit(rows)
    else:
        table([{**row, "status": "paused" if row["paused"] else "open"} for row in rows], _COLUMNS)


@app.command("pause")
def pause(queue: _Name) -> None:
    """Let no waiting job of a queue start; running ones finish, and new ones are accepted."""
    _set(queue, paused=True)


@app.command("resume")
def resume(queue: _Name) -> None:
    """Let the jobs of a paused queue start again."""
    _set(queue, paused=False)


@app.command("window")
def window(
    queue: _Name,
    jobs: Annotated[int | None, typer.Argument(metavar="[JOBS]", help="How many; by default as the setting says.")] = None,
) -> None:
    """Set how many jobs of a queue may lie in Redis at a time; the others wait in Postgres."""
    with services():
        from worker.db import statement
        from worker.ledger import manage, queues

        with statement() as conn:
            check_queue(queue, [row["queue"] for row in manage.list_queues(conn)])
            queues.set_window(conn, queue, jobs)
    print(f"window of {queue}: {'as the setting says' if jobs is None else jobs}")


def _set(queue: str, *, paused: bool) -> None:
    with services():
        from worker.db import statement
        from worker.ledger import manage

        with statement() as conn:
            check_queue(queue, [row["queue"] for row in manage.list_queues(conn)])
            manage.set_paused(conn, queue, paused)
    print(f"{'paused' if paused else 'resumed'}: {queue}")
