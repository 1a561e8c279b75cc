"""`holdfast events`: what happens to jobs, as it happens, and of which jobs it is written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import parse
from worker.cli.output import emit_line, in_line, shown
from worker.cli.services import services

if TYPE_CHECKING:
    from worker.ledger.events import Position

app = typer.Typer(no_args_is_help=True, help="Follow what happens to jobs.")

#: Events read at a time.
_PAGE = 500


@app.command("tail")
def tail(
    start: Annotated[
        str | None, typer.Option("--from", metavar="POSITION", help="Begin behind an event: its `position`, as --json tells it.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(parser=parse.past, metavar="TIME", help="Begin with what happened since then: 2h, 1d, or a time."),
    ] = None,
    job: Annotated[str | None, typer.Option(metavar="ID", help="Only this job, from its first event on.")] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Whether to go on with what comes.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Print the events kept in Postgres and go on as they come; by default only what comes from now on.

    A program that lost the stream rebuilds with this: no event from the moment or position on is left out.
    """
    if sum(given is not None for given in (start, since, job)) > 1:
        raise ValueError("give one of --from, --since and --job")
    with services():
        page = _of_job(job) if job is not None else _of_all(start, since)
        _print_all(page, as_json)
        if follow:
            _follow(page, as_json)


@app.command("level")
def level(
    wanted: Annotated[
        str | None, typer.Argument(metavar="[off|callers|all]", help="Write events of no job, of those with a caller, or of all.")
    ] = None,
) -> None:
    """Show of which jobs events are written, or change it for all who write jobs; it takes effect at once."""
    with services():
        from worker.db import statement
        from worker.ledger import events

        with statement() as conn:
            if wanted is not None:
                events.set_level(conn, wanted)
            print(events.level(conn))


#: Returns the next events, each as a line's fields; nothing when there are no more for now.
_Page = Callable[[], list[dict[str, Any]]]


def _of_job(job_id: str) -> _Page:
    from worker.db import repeatable
    from worker.ledger.events import events_after

    last = 0

    def page() -> list[dict[str, Any]]:
        nonlocal last
        found = repeatable(lambda conn: events_after(conn, job_id=job_id, after_id=last, limit=_PAGE))
        last = found[-1].id if found else last
        return [asdict(event) for event in found]

    return page


def _of_all(start: str | None, since: datetime | None) -> _Page:
    from worker.db import repeatable
    from worker.ledger.events import events_since

    position = _begin(start, since)

    def page() -> list[dict[str, Any]]:
        nonlocal position
        found = repeatable(lambda conn: events_since(conn, position, limit=_PAGE))
        position = found[-1][1] if found else position
        return [{**asdict(event), "position": str(behind)} for event, behind in found if since is None or event.at >= since]

    return page


def _begin(start: str | None, since: datetime | None) -> Position:
    from worker.db import statement
    from worker.ledger import events

    with statement() as conn:
        if start is not None:
            position = events.Position.parse(start)
            events.check_position(conn, position)
            return position
        return events.position_at(conn, since) if since is not None else events.end(conn)


def _print_all(page: _Page, as_json: bool) -> None:
    while found := page():
        for line in found:
            _print(line, as_json)


def _print(line: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit_line(line)
    else:
        attempt = f" (attempt {line['attempt']})" if line["attempt"] else ""
        detail = f": {in_line(line['detail'])}" if line["detail"] else ""
        print(f"{shown(line['at'])}  {line['job_id']}  {in_line(line['task'])}  {line['state']}{attempt}{detail}", flush=True)


def _follow(page: _Page, as_json: bool) -> None:
    from worker.ledger.news import News

    news, seen = News(), 0
    while True:
        seen = news.wait(seen)
        _print_all(page, as_json)
