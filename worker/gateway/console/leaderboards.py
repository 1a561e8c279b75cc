"""The leaderboards: busiest callers, slowest and most failing tasks, biggest spenders, and the hottest keys of the cache."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.cache import hot
from worker.gateway.console.access import done, form, operator, viewer
from worker.gateway.console.drafts import asked
from worker.gateway.console.pages import page
from worker.gateway.state import gateway_of
from worker.ledger import boards, trail
from worker.ledger.operators import Operator
from worker.live.leaderboards import Window

#: The boards in their order: what each is called, what its figures are, and where a member leads.
_BOARDS = (
    ("callers", "Busiest callers", "Jobs that ended", "/console/jobs?caller="),
    ("slow", "Slowest tasks", "Longest run", "/console/jobs?task="),
    ("failing", "Most failing tasks", "Jobs that failed", "/console/jobs?state=failed&task="),
    ("spenders", "Biggest spenders", "Spent, in millionths", "/console/limits?subject="),
)
#: Members that are shown of each.
_COUNT = 10


@viewer
def show(request: Request, who: Operator) -> Response:
    """Show the boards of the hour, day or week that is now."""
    window = _window(asked(request, "window"))
    told = [{"name": name, "title": title, "told": figure, "to": to, "places": boards.board(name, window).top(_COUNT)}
            for name, title, figure, to in _BOARDS]  # fmt: skip
    return page(request, "leaderboards.html", window=window, windows=boards.WINDOWS, boards=told, hot=_hottest())


@operator
def refresh(request: Request, who: Operator) -> Response:
    """Have a worker count the boards of a window anew, which beat does every few minutes."""
    window = _window(form(request).get("window", ""))
    with trail.recording(who.name, "boards.refresh", window):
        job_id = gateway_of(request).celery.send_task("boards.refresh", args=[[window]]).id
    return done(request, f"A worker counts them anew: job {job_id}.")


def _window(text: str) -> Window:
    return next((window for window in boards.WINDOWS if window == text), "day")


def _hottest() -> list[dict[str, Any]]:
    return [{"rank": rank, "name": one.name, "args": one.args, "reads": one.reads} for rank, one in enumerate(hot.top(_COUNT), 1)]


routes = [
    Route("/leaderboards", show, methods=["GET"]),
    Route("/leaderboards/refresh", refresh, methods=["POST"]),
]
