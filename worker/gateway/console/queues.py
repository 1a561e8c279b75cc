"""Queues: how full each is, what waits by priority, pausing one, and how much of it may lie in Redis."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.db import statement
from worker.errors import UnknownQueue
from worker.gateway.console.access import done, form, operator, viewer
from worker.gateway.console.drafts import REFUSALS, Draft, asked
from worker.gateway.console.pages import confirm, page
from worker.ledger import manage, priorities, queues, trail
from worker.ledger.operators import Operator
from worker.settings import settings


@viewer
def show(request: Request, who: Operator) -> Response:
    """List the queues."""
    with statement() as conn:
        return page(request, "queues.html", queues=manage.list_queues(conn))


@viewer
def show_one(request: Request, who: Operator) -> Response:
    """Show one queue."""
    name = asked(request, "queue")
    return _one(request, name, Draft({"window": str(_own_window(name) or "")}))


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


@operator
def set_window(request: Request, who: Operator) -> Response:
    """Set how many jobs of a queue may lie in Redis at a time; nothing entered is the setting's number."""
    queue, text = _queue_of(request), form(request).get("window", "").strip()
    try:
        window = _number(text)
        with trail.recording(who.name, "queue.set_window", queue, window=window, before=_own_window(queue)) as conn:
            queues.set_window(conn, queue, window)
    except REFUSALS as exc:
        return _one(request, queue, Draft.refused(form(request), exc, {"window": "window"}), status=422)
    said = f"{window:,}" if window else f"{settings().window:,}, as the setting says"
    return done(request, f"The window of {queue} is {said}.")


def _one(request: Request, name: str, draft: Draft, status: int = 200) -> Response:
    with statement() as conn:
        row = next((row for row in manage.list_queues(conn) if row["queue"] == name), None)
        if row is None:
            raise HTTPException(404, f"There is no queue {name!r}.")
        steps = priorities.steps_of(conn, name)
    return page(request, "queue.html", status=status, row=row, steps=steps, draft=draft, default=settings().window)


def _queue_of(request: Request) -> str:
    queue = form(request).get("queue", "")
    with statement() as conn:
        if queue not in [row["queue"] for row in manage.list_queues(conn)]:
            raise UnknownQueue(f"there is no queue {queue!r}")
    return queue


def _own_window(queue: str) -> int | None:
    kept: list[Any] = queues.queue_settings()
    return next((row["window"] for row in kept if row["name"] == queue), None)


def _number(text: str) -> int | None:
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError(f"window: {text[:40]!r} is not a whole number from 1 to {queues.MOST_WINDOW}")
    return int(text) if text else None


routes = [
    Route("/queues", show, methods=["GET"]),
    Route("/queues/one", show_one, methods=["GET"]),
    Route("/queues/pause", pause, methods=["POST"]),
    Route("/queues/resume", resume, methods=["POST"]),
    Route("/queues/window", set_window, methods=["POST"]),
]
