"""The overview: what the system did and does, what waits, who works, and what comes next."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.engine import fleet
from worker.gateway.console import plots
from worker.gateway.console.access import viewer
from worker.gateway.console.live import EVERY_S, shared, stream
from worker.gateway.console.pages import page, text
from worker.ledger import schedules, statistics
from worker.ledger.operators import Operator

#: Tasks, and schedules, that the overview has room for.
_TASKS, _SCHEDULES = 10, 8
#: The parts of the page that keep themselves current.
PARTS = ("figures", "throughput", "backlog", "tasks", "fleet", "due")


@viewer
def show(request: Request, who: Operator) -> Response:
    """Show the overview."""
    return page(request, "overview.html", parts=PARTS, **_known())


@viewer
async def live(request: Request, who: Operator) -> Response:
    """Tell what changes on it."""
    return stream(request, lambda: {part: text(request, f"overview/{part}.html", **_known()) for part in PARTS})


@shared(EVERY_S)
def _known() -> dict[str, Any]:
    """Return what the overview shows: figures that are counted for all through the cache, and the fleet."""
    activity, backlog = statistics.activity(), statistics.backlog()
    queues = sorted(backlog.queues, key=lambda queue: queue.oldest_s or 0.0, reverse=True)
    tasks = sorted(activity.by_task, key=lambda task: task.ended, reverse=True)
    ended, failed = sum(task.ended for task in tasks), sum(task.failed for task in tasks)
    return {
        "activity": activity, "backlog": backlog, "queues": queues, "ages": plots.shares(queue.oldest_s for queue in queues),
        "hours": plots.hours(activity), "plot": plots, "tasks": tasks[:_TASKS], "other_tasks": max(0, len(tasks) - _TASKS),
        "workers": [worker for worker in fleet.listed() if worker["status"] != "left"], "due": _due(),
        "ended": ended, "failed": failed, "waiting": sum(queue.waiting for queue in queues),
        "running": sum(queue.running for queue in queues), "oldest_s": queues[0].oldest_s if queues else None,
    }  # fmt: skip


def _due() -> list[tuple[datetime, schedules.Listed]]:
    """Return the schedules that fire next."""
    found = [(one["next_tick"], one) for one in schedules.listed() if one["enabled"] and one["next_tick"] is not None]
    return sorted(found, key=lambda pair: pair[0])[:_SCHEDULES]


routes = [
    Route("/", show, methods=["GET"]),
    Route("/live/overview", live, methods=["GET"]),
]
