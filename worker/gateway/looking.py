"""Looking at jobs: one, perhaps waiting for its end, or a page of them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from psycopg.errors import QueryCanceled
from starlette.responses import Response

from worker.db import repeatable
from worker.errors import HoldfastError
from worker.gateway import shapes
from worker.gateway.documents import is_final, job_document
from worker.gateway.parameters import JobId, Moment, Reader, Text, Wait, json_response, moment, seconds
from worker.gateway.problems import Problem
from worker.gateway.state import gateway_of
from worker.ledger import manage
from worker.ledger.manage import Filter
from worker.states import JobState

router = APIRouter()

#: Seconds that a list may take: a search reads every job that the other filters leave.
_LONGEST_S = 5


@router.get("/v1/jobs/{job_id:job}", operation_id="getJob", summary="Look at a job", response_model=shapes.Job)
async def get_job(request: Request, caller: Reader, job_id: JobId, wait: Wait = None) -> Response:
    """Tell how a job stands; with `wait`, when it has ended, or else after that long."""
    gateway, loop = gateway_of(request), asyncio.get_running_loop()
    documents, deadline = gateway.documents, loop.time() + seconds("wait", wait)
    row = await documents.of(job_id, caller)
    if not is_final(row) and deadline > loop.time():
        async with gateway.watch.on(job_id) as watched:
            while True:
                bell = watched.bell
                row = await documents.of(job_id, caller)
                if is_final(row) or not await gateway.watch.wait(bell, deadline - loop.time()):
                    break
    return json_response(job_document(row))


@router.get("/v1/jobs", operation_id="listJobs", summary="List jobs", response_model=shapes.Page)
async def list_jobs(
    request: Request,
    reader: Reader,
    state: Annotated[list[JobState] | None, Query(description="Only these states.")] = None,
    task: Text = None,
    queue: Text = None,
    caller: Text = None,
    since: Moment = None,
    until: Moment = None,
    search: Text = None,
    limit: Annotated[int, Query(ge=1, le=500, description="Jobs of one page.")] = 50,
    cursor: Text = None,
) -> Response:
    """List jobs, the newest first by when they ended or, living, were accepted; `next` asks for those behind them."""
    if not reader.is_admin:
        if caller not in (None, reader.name):
            raise Problem(403, "Only a key with the scope admin sees the jobs of other callers.", field="caller")
        caller = reader.name
    which = Filter(list(state) if state else None, task, queue, caller, moment("since", since), moment("until", until), search)
    try:
        rows = await asyncio.to_thread(
            repeatable, lambda conn: manage.list_jobs_within(conn, _LONGEST_S, which, limit=limit, before=cursor)
        )
    except HoldfastError:
        raise
    except QueryCanceled:
        why = f"It takes more than {_LONGEST_S} s to look for these: narrow it by since, until, task, queue or state."
        raise Problem(422, why, code="too_slow", field="search" if search else None) from None
    except (ValueError, OverflowError) as exc:
        raise Problem(422, str(exc), field="cursor") from None
    return json_response({"jobs": [_listed(row) for row in rows], "next": rows[-1]["cursor"] if len(rows) == limit else None})


def _listed(row: dict[str, Any]) -> dict[str, Any]:
    told = job_document(row)
    return {name: told[name] for name in shapes.ListedJob.model_fields}
