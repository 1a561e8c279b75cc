"""Looking at the system: tasks, queues, schedules, usage and figures."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from worker.clock import now
from worker.db import repeatable
from worker.engine.application import Holdfast
from worker.engine.schemas import schema_of
from worker.gateway import shapes
from worker.gateway.parameters import Admin, Moment, Reader, Text, json_response, moment
from worker.gateway.state import gateway_of
from worker.ledger import manage, schedules, statistics, usage
from worker.ledger.callers import Caller

router = APIRouter()

_BY = ("subject", "model", "day")


@router.get("/v1/tasks", operation_id="listTasks", summary="List tasks", response_model=shapes.Tasks)
async def tasks(request: Request, caller: Reader) -> Response:
    """List the tasks this caller may ask for, with the JSON Schema of their arguments by name."""
    return json_response({"tasks": _tasks(gateway_of(request).celery, caller)})


def _tasks(celery: Holdfast, caller: Caller) -> list[dict[str, Any]]:
    default = celery.conf.task_default_queue
    return [
        {"name": name, "queue": getattr(task, "queue", None) or default, "arguments": schema_of(task)}
        for name, task in sorted(celery.tasks.items())
        if caller.may_task(name)
    ]


@router.get("/v1/queues", operation_id="listQueues", summary="List queues", response_model=shapes.Queues)
async def queues(caller: Reader) -> Response:
    """List the queues this caller may use, with what waits in them; `in_redis` is null while Redis is away."""
    rows = await asyncio.to_thread(repeatable, manage.list_queues)
    return json_response({"queues": [_in_utc(row) for row in rows if caller.may_queue(row["queue"])]})


@router.get("/v1/schedules", operation_id="listSchedules", summary="List schedules", response_model=shapes.Documents)
async def list_schedules(caller: Admin) -> Response:
    """List the schedules with their arguments; for admins."""
    return json_response({"items": [_in_utc(dict(row)) for row in await asyncio.to_thread(schedules.listed)]})


@router.get("/v1/usage", operation_id="listUsage", summary="Sum usage", response_model=shapes.Documents)
async def list_usage(
    caller: Admin,
    by: Annotated[list[str] | None, Query(json_schema_extra={"items": {"enum": list(_BY)}})] = None,
    subject: Text = None,
    since: Moment = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Response:
    """Sum what metered calls have spent; for admins."""
    first = moment("since", since) or now() - timedelta(days=30)
    rows = await asyncio.to_thread(
        repeatable,
        lambda conn: usage.totals(conn, by=list(dict.fromkeys(by or _BY)), since=first, subject=subject, limit=limit),
    )
    return json_response({"items": [_in_utc(row) for row in rows]})


@router.get("/v1/stats", operation_id="getStatistics", summary="Look at figures", response_model=shapes.Statistics)
async def stats(caller: Reader, hours: Annotated[int, Query(ge=1, le=statistics.MOST_HOURS)] = statistics.HOURS) -> Response:
    """Tell what ended in the last hours and what waits, of the tasks and queues this caller may use, half a minute old."""
    activity, backlog = await asyncio.gather(
        asyncio.to_thread(statistics.activity, hours), asyncio.to_thread(statistics.backlog)
    )
    ended = {
        "at": activity.at, "hours": activity.hours,
        "by_hour": [msgspec.to_builtins(row, builtin_types=(datetime,)) for row in activity.by_hour if caller.may_task(row.task)],
        "by_task": [msgspec.to_builtins(row) for row in activity.by_task if caller.may_task(row.task)],
    }  # fmt: skip
    waits = {"at": backlog.at, "queues": [msgspec.to_builtins(row) for row in backlog.queues if caller.may_queue(row.queue)]}
    return json_response({"activity": ended, "backlog": waits})


def _in_utc(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value.astimezone(UTC) if isinstance(value, datetime) else value for name, value in row.items()}
