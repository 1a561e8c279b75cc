"""Queues: how full each is, and pausing one."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.db import statement
from worker.errors import UnknownQueue
from worker.gateway.console.access import done, form, operator, viewer
from worker.gateway.console.pages import confirm, page
from worker.ledger import manage, trail
from worker.ledger.operators import Operator


@viewer
def show(request: Request, who: Operator) -> Response:
    """List the queues."""
    with statement() as conn:
        return page(request, "queues.html", queues=manage.list_queues(conn))


@operator
def pause(request: Request, who: Operator) -> Response:
    """Let no waiting job of a queue start."""
    queue = _queue_of(request)
    warning = "None of its waiting jobs starts until it is resumed. Running ones finish, and new ones are accepted."
    if (question := confirm(request, f"Pause the queue {queue}?", warning, do="Pause")) is not None:
        return question
    with trail.recording(who.name, "queue.pause", queue) as conn:
        manage.set_paused(conn, queue, True)
    return done(request, f"{queue} is paused.")


@operator
def resume(request: Request, who: Operator) -> Response:
    """Let the jobs of a paused queue start again."""
    queue = _queue_of(request)
    with trail.recording(who.name, "queue.resume", queue) as conn:
        manage.set_paused(conn, queue, False)
    return done(request, f"{queue} goes on.")


def _queue_of(request: Request) -> str:
    queue = form(request).get("queue", "")
    with statement() as conn:
        if queue not in [row["queue"] for row in manage.list_queues(conn)]:
            raise UnknownQueue(f"there is no queue {queue!r}")
    return queue


routes = [
    Route("/queues", show, methods=["GET"]),
    Route("/queues/pause", pause, methods=["POST"]),
    Route("/queues/resume", resume, methods=["POST"]),
]
