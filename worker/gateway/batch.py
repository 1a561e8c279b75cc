"""Handing in many jobs with one request: all or none, or each for itself."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from worker.engine.application import Holdfast
from worker.errors import CostTooHigh, LedgerUnavailable
from worker.gateway import openapi, shapes
from worker.gateway.auth import authenticate, charge, check_parameters
from worker.gateway.body import read_json
from worker.gateway.calls import job_from, refusal, told
from worker.gateway.parameters import json_response
from worker.gateway.problems import Problem
from worker.gateway.state import gateway_of
from worker.ledger import accept
from worker.ledger.accept import copy_jobs, is_copyable
from worker.ledger.callers import Caller
from worker.ledger.group import accept_group
from worker.ledger.message import NewJob
from worker.settings import settings

router = APIRouter()

#: Most jobs of one request.
MOST = 10_000


@router.post(
    "/v1/jobs:batch", operation_id="postBatch", summary="Hand in many jobs", response_model=shapes.Batch,
    openapi_extra=openapi.POST_BATCH,
)  # fmt: skip
async def post_batch(request: Request) -> Response:
    """Accept up to 10,000 jobs in one transaction. With `all` one bad job refuses the batch; without, it is told at its place.

    What makes a batch repeatable is an `idempotency_key` in each of its jobs; it has no header of its own.
    """
    caller = await authenticate(request, "enqueue", cost=0)
    check_parameters(request)
    if "idempotency-key" in request.headers:
        raise Problem(400, "A batch is made repeatable by an idempotency_key in each of its jobs, not by a header.",
                      code="invalid_idempotency_key", field="Idempotency-Key")  # fmt: skip
    body = await read_json(request, settings().gateway_batch_bytes)
    jobs, together = _read(body)
    try:
        await charge(request, caller, len(jobs))
    except CostTooHigh as exc:
        raise Problem(422, f"The rate of this caller admits {exc.most} jobs at once; send smaller batches.",
                      code="batch_too_large", field="jobs") from exc  # fmt: skip
    gateway, accept_them = gateway_of(request), _accept_all if together else _accept_each
    items = await asyncio.get_running_loop().run_in_executor(gateway.batches, accept_them, gateway.celery, caller, jobs)
    accepted = sum("id" in item for item in items)
    return json_response({"accepted": accepted, "refused": len(items) - accepted, "items": items})


def _read(body: Any) -> tuple[list[Any], bool]:
    if not isinstance(body, dict):
        raise Problem(422, "The body is not an object like {\"jobs\": [...]}.", field="jobs")
    if unknown := sorted(set(body) - {"jobs", "all"}):
        raise Problem(422, f"{unknown[0][:60]}: there is no such field; there are jobs and all.", field=unknown[0][:60])
    jobs, together = body.get("jobs"), body.get("all", False)
    if not isinstance(together, bool):
        raise Problem(422, "all: it is not true or false.", field="all")
    if not isinstance(jobs, list) or not jobs:
        raise Problem(422, "jobs: it is not a list of at least one job.", field="jobs")
    if len(jobs) > MOST:
        raise Problem(413, f"jobs: {len(jobs):,} are more than {MOST:,}.", code="batch_too_large", field="jobs")
    return jobs, together


def _accept_all(celery: Holdfast, caller: Caller, values: list[Any]) -> list[dict[str, Any]]:
    jobs = []
    for index, value in enumerate(values):
        try:
            jobs.append(job_from(celery, caller, value))
        except Exception as exc:
            raise refusal(exc, at=f"jobs.{index}") from exc
    write = copy_jobs if all(map(is_copyable, jobs)) else accept
    return [dict(told(job_id)) for job_id in write(jobs)]


def _accept_each(celery: Holdfast, caller: Caller, values: list[Any]) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = [{}] * len(values)
    jobs: dict[int, NewJob] = {}
    for index, value in enumerate(values):
        try:
            jobs[index] = job_from(celery, caller, value)
        except Exception as exc:
            items[index] = {"problem": refusal(exc).document()}
    outcomes: list[str | Exception] = []
    accept_group(list(jobs.values()), outcomes.extend)
    if outcomes and all(isinstance(outcome, LedgerUnavailable) for outcome in outcomes):
        raise LedgerUnavailable
    for index, outcome in zip(jobs, outcomes, strict=True):
        items[index] = {"problem": refusal(outcome).document()} if isinstance(outcome, Exception) else dict(told(outcome))
    return items
