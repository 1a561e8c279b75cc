"""`holdfast webhooks`: see which callbacks were delivered, are tried again or were given up, and deliver them again."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from worker.cli import options
from worker.cli.bulk import Bulk
from worker.cli.output import emit, note, record, table
from worker.cli.selection import choose
from worker.cli.services import services
from worker.errors import InvalidJob, JobNotFound

app = typer.Typer(no_args_is_help=True, help="See the deliveries of callbacks, and deliver them again.")

_COLUMNS = {"id": "id", "state": "state", "job": "job", "type": "type", "host": "host", "attempt": "try",
            "at": "ended or next (UTC)", "error": "error"}  # fmt: skip
_FIELDS = ("id", "state", "job", "caller", "type", "url", "attempt", "created_at", "available_at", "finished_at", "result",
           "error")  # fmt: skip
#: What a delivery's row says by the names it is told under.
_SAME = ("id", "state", "caller", "attempt", "error", "created_at", "available_at", "finished_at")

_Job = Annotated[str | None, typer.Option("--job", metavar="ID", help="Only those that tell of this job's ends.")]


@app.command("ls")
def ls(
    job: _Job = None,
    state: options.State = None,
    caller: options.Caller = None,
    since: options.Since = None,
    until: options.Until = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Deliveries of one page.")] = 50,
    before: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Continue after the delivery with this cursor, as a page tells it.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """List deliveries, the newest first; one that is scheduled is tried again at that time."""
    which = choose(state, None, None, caller, since, until, None)
    with services():
        from worker.db import statement
        from worker.ledger import manage, webhooks

        with statement() as conn:
            if job is not None:
                shown = [manage.show(conn, delivery) for delivery in webhooks.deliveries_of(conn, job)]
            else:
                rows = manage.list_jobs(conn, webhooks.among(which), limit=limit, before=before)
                shown = [{**manage.show(conn, row["id"]), "cursor": row["cursor"]} for row in rows]
    told = [_told(row) for row in shown]
    if as_json:
        emit(told)
        return
    table([{**row, "at": row["finished_at"] or row["available_at"]} for row in told], _COLUMNS, cut=("host", "error"))
    if job is None and len(told) == limit:
        note(f"there may be more: --before '{told[-1]['cursor']}'")


@app.command("show")
def show(
    delivery_id: Annotated[str, typer.Argument(metavar="ID", help="The delivery.")], as_json: options.AsJson = False
) -> None:
    """Show a delivery: what is told, to whom, and how each try went."""
    with services():
        from worker.db import statement

        with statement() as conn:
            found = _delivery(conn, delivery_id)
    told = {**_told(found), "payload": _kwargs(found)["payload"], "attempts": found["attempts"]}
    if as_json:
        emit(told)
        return
    record([*((name, told.get(name)) for name in _FIELDS), ("payload", told["payload"])])
    for attempt in told["attempts"]:
        print()
        record(attempt.items())


@app.command("redeliver")
def redeliver(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="The deliveries; or choose them by filters.", show_default=False)
    ] = None,
    state: options.State = None,
    caller: options.Caller = None,
    since: options.Since = None,
    until: options.Until = None,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Deliver again, now, under the same webhook-id; by filter, those that were given up unless --state says otherwise."""
    which = choose(state, None, None, caller, since, until, None)
    with services():
        from worker.cli.selection import is_empty
        from worker.db import statement
        from worker.ledger import manage, webhooks

        def again(delivery_id: str) -> str:
            with statement() as conn:
                if _delivery(conn, delivery_id)["state"] in ("scheduled", "queued", "running"):
                    if manage.retry_now(conn, delivery_id):
                        return "due now"
                    raise InvalidJob(f"delivery {delivery_id} is under way")
                manage.replay(conn, delivery_id)
            return "queued again"

        if not is_empty(which):
            which = webhooks.among(which)
        past = ["succeeded", "failed", "cancelled", "expired", "discarded"]
        Bulk("redeliver", again, living=False, states=past, default=["failed", "discarded"]).run(
            ids, which, yes=yes, as_json=as_json
        )


def _delivery(conn: Any, delivery_id: str) -> dict[str, Any]:
    """Return a delivery's record. Raises `JobNotFound` also for a job that is none."""
    from worker.ledger import manage, webhooks

    found = manage.show(conn, delivery_id)
    if found["task"] != webhooks.TASK:
        raise JobNotFound(f"job {delivery_id} is no delivery of a callback; see `holdfast webhooks ls`")
    return found


def _told(row: dict[str, Any]) -> dict[str, Any]:
    kwargs = _kwargs(row)
    return {
        **{name: row.get(name) for name in _SAME},
        "job": row.get("parent_id"), "type": kwargs["type"], "url": kwargs["url"], "host": kwargs["host"],
        "result": row.get("result"), "cursor": row.get("cursor"),
    }  # fmt: skip


def _kwargs(row: dict[str, Any]) -> dict[str, Any]:
    """Return what a delivery was given. Somebody who writes SQL may have made it of anything."""
    try:
        kwargs = json.loads(row["message"]["body"])[1]
        return {**{name: str(kwargs[name]) for name in ("url", "host", "payload")}, "type": json.loads(kwargs["payload"])["type"]}
    except (LookupError, TypeError, ValueError):
        return dict.fromkeys(("url", "host", "payload", "type"), "")
