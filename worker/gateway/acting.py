"""Acting on one job: cancelling it, and letting it run now or again."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from worker.db import repeatable
from worker.gateway import shapes
from worker.gateway.documents import is_final
from worker.gateway.parameters import Enqueuer, JobId, json_response
from worker.gateway.problems import Problem
from worker.gateway.state import gateway_of
from worker.ledger import manage

router = APIRouter()


@router.post("/v1/jobs/{job_id:job}:cancel", operation_id="cancelJob", summary="Cancel a job", response_model=shapes.Acted)
async def cancel(request: Request, caller: Enqueuer, job_id: JobId) -> Response:
    """Cancel a job that waits, or ask a running one to stop; one that has ended is a 409."""
    gateway = gateway_of(request)
    await gateway.documents.of(job_id, caller)
    done = await asyncio.to_thread(gateway.celery.control.cancel, job_id)
    gateway.documents.forget(job_id)
    if done is None:
        row = await gateway.documents.of(job_id, caller)
        raise Problem(409, f"The job is {row['state']}; there is nothing to cancel.", code="not_cancellable")
    return json_response({"id": job_id, "done": done})


@router.post("/v1/jobs/{job_id:job}:retry", operation_id="retryJob", summary="Run a job now", response_model=shapes.Acted)
async def retry(request: Request, caller: Enqueuer, job_id: JobId) -> Response:
    """Let a job that waits for its time run at once, and one that did not succeed run again; any other is a 409."""
    gateway = gateway_of(request)
    row = await gateway.documents.of(job_id, caller)
    if is_final(row) and row["state"] != "succeeded":
        await asyncio.to_thread(repeatable, lambda conn: manage.replay(conn, job_id))
        done = "queued again"
    elif row["state"] == "scheduled" and await asyncio.to_thread(repeatable, lambda conn: manage.retry_now(conn, job_id)):
        done = "due now"
    else:
        raise Problem(409, f"The job is {row['state']}; there is nothing to retry.", code="not_retryable")
    gateway.documents.forget(job_id)
    return json_response({"id": job_id, "done": done})
