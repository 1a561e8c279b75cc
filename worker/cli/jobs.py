"""`holdfast jobs`: look at jobs, and act on one, some or many of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import options
from worker.cli.bulk import Bulk
from worker.cli.output import emit, note, record, table
from worker.cli.selection import choose
from worker.cli.services import services

if TYPE_CHECKING:
    from worker.ledger.manage import Filter

app = typer.Typer(no_args_is_help=True, help="Look at jobs and act on them.")

_COLUMNS = {
    "id": "id", "state": "state", "task": "task", "queue": "queue", "attempt": "try", "at": "ended or accepted (UTC)",
    "about": "error or arguments",
}  # fmt: skip
#: Shown of a job in this order; the rest of the row is how the ledger works.
_FIELDS = ("id", "task", "state", "queue", "priority", "args", "kwargs", "result", "error", "progress", "attempt", "max_attempts",
           "crashes", "caller", "idempotency_key", "unique_key", "worker", "created_at", "available_at", "expires_at",
           "started_at", "finished_at", "cancel_requested", "parent_id", "root_id", "group_id", "traceback")  # fmt: skip


@app.command("ls")
def ls(
    state: options.State = None,
    task: options.TaskName = None,
    queue: options.QueueName = None,
    caller: options.Caller = None,
    since: options.Since = None,
    until: options.Until = None,
    search: options.Search = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Jobs of one page.")] = 50,
    before: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Continue after the job with this cursor, as a page tells it.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """List jobs, living and past, the newest first by when they ended or were accepted."""
    which = choose(state, task, queue, caller, since, until, search)
    with services():
        from worker.db import statement
        from worker.ledger import manage

        with statement() as conn:
            rows = manage.list_jobs(conn, which, limit=limit, before=before)
    if as_json:
        emit(rows)
        return
    shown = [{**row, "at": row["finished_at"] or row["created_at"], "about": row["error"] or _call(row)} for row in rows]
    table(shown, _COLUMNS, cut=("task", "queue", "about"))
    if len(rows) == limit:
        note(f"there may be more: --before '{rows[-1]['cursor']}'")


def _call(row: dict[str, Any]) -> str:
    return " ".join(text for text, empty in ((row["args"], "()"), (row["kwargs"], "{}")) if text != empty)


@app.command("show")
def show(job_id: Annotated[str, typer.Argument(metavar="ID", help="The job.")], as_json: options.AsJson = False) -> None:
    """Show all that is known of a job, its attempts included."""
    with services():
        from worker.db import statement
        from worker.ledger import manage

        with statement() as conn:
            job = manage.show(conn, job_id)
    if as_json:
        emit(job)
        return
    record((name, job.get(name)) for name in _FIELDS if job.get(name) not in (None, False))
    for attempt in job["attempts"]:
        print()
        record(attempt.items())


@app.command("retry")
def retry(
    ids: options.Ids = None,
    task: options.TaskName = None,
    queue: options.QueueName = None,
    caller: options.Caller = None,
    since: options.Since = None,
    until: options.Until = None,
    search: options.Search = None,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Let scheduled jobs run now instead of at their time."""
    _act("retry", ids, choose(None, task, queue, caller, since, until, search), yes, as_json)


@app.command("cancel")
def cancel(
    ids: options.Ids = None,
    state: options.State = None,
    task: options.TaskName = None,
    queue: options.QueueName = None,
    caller: options.Caller = None,
    since: options.Since = None,
    until: options.Until = None,
    search: options.Search = None,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Cancel waiting jobs, and ask running ones to stop."""
    _act("cancel", ids, choose(state, task, queue, caller, since, until, search), yes, as_json)


@app.command("replay")
def replay(
    ids: options.Ids = None,
    state: options.State = None,
    task: options.TaskName = None,
    queue: options.QueueName = None,
    caller: options.Caller = None,
    since: options.Since = None,
    until: options.Until = None,
    search: options.Search = None,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Run finished jobs again under their ids; by filter, those that failed or were discarded unless --state says otherwise."""
    _act("replay", ids, choose(state, task, queue, caller, since, until, search), yes, as_json)


def _act(verb: str, ids: list[str] | None, which: Filter, yes: bool, as_json: bool) -> None:
    with services():
        from worker.app import app as celery
        from worker.engine.acts import ACTS

        act = ACTS[verb]
        bulk = Bulk(verb, lambda job_id: act.do(celery, job_id, None), act.living, act.states, act.default)
        bulk.run(ids, which, yes=yes, as_json=as_json)
