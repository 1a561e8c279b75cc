"""`holdfast webhooks`: see which callbacks were delivered, are tried again or were given up, and deliver them again."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from worker.cli import options
from worker.cli.bulk import Bulk
from worker.cli.output import emit, note, record, table
from worker.cli.selection import choose
from worker.cli.services import services

app = typer.Typer(no_args_is_help=True, help="See the deliveries of callbacks, and deliver them again.")

_COLUMNS = {"id": "id", "state": "state", "job": "job", "type": "type", "host": "host", "attempt": "try",
            "at": "ended or next (UTC)", "error": "error"}  # fmt: skip
_FIELDS = ("id", "state", "job", "caller", "type", "url", "attempt", "created_at", "available_at", "finished_at", "result",
           "error")  # fmt: skip

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
        from worker.ledger import webhooks

        with statement() as conn:
            found = webhooks.show(conn, delivery_id)
        told = {**webhooks.told(found), "attempts": found["attempts"]}
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
        from worker.ledger import webhooks

        def again(delivery_id: str) -> str:
            with statement() as conn:
                return webhooks.redeliver(conn, delivery_id)

        if not is_empty(which):
            which = webhooks.among(which)
        past = ["succeeded", "failed", "cancelled", "expired", "discarded"]
        Bulk("redeliver", again, living=False, states=past, default=["failed", "discarded"]).run(
            ids, which, yes=yes, as_json=as_json
        )


def _told(row: dict[str, Any]) -> dict[str, Any]:
    from worker.ledger import webhooks

    told = {**webhooks.told(row), "cursor": row.get("cursor")}
    del told["payload"]
    return told
