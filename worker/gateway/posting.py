"""Handing in one job, once, however often the request is repeated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import APIRouter, Request
from starlette.responses import Response

from worker.errors import InvalidJob
from worker.gateway import openapi, shapes
from worker.gateway.auth import authenticate, check_parameters
from worker.gateway.body import read_json
from worker.gateway.calls import idempotency_key, job_from, told
from worker.gateway.parameters import json_response
from worker.gateway.problems import Problem
from worker.gateway.state import Gateway, gateway_of
from worker.settings import settings

router = APIRouter()


@router.post(
    "/v1/jobs", operation_id="postJob", summary="Hand in a job", status_code=202, response_model=shapes.Accepted,
    openapi_extra=openapi.POST_JOB,
)  # fmt: skip
async def post_job(request: Request) -> Response:
    """Accept a job: when the answer comes, its row is committed. The body is checked against the task's own arguments.

    With an `Idempotency-Key` a request can be repeated: it makes one job, and each repeat is answered as the first was. The same
    key with another task or other arguments is a 422, one whose first request is not answered yet a 409.
    """
    caller = await authenticate(request, "enqueue")
    check_parameters(request)
    key = idempotency_key(request)
    values = await read_json(request, settings().gateway_body_bytes)
    if isinstance(values, dict) and "idempotency_key" in values:
        raise InvalidJob("idempotency_key: it is the header Idempotency-Key", field="idempotency_key")
    gateway = gateway_of(request)
    job = job_from(gateway.celery, caller, values)
    if key is None:
        job_id = await gateway.group.accept(job)
    else:
        job.idempotency_key = key
        with _in_flight(gateway, caller.name, key):
            job_id = await gateway.group.accept(job)
    document = told(job_id)
    return json_response(document, 202, {"Location": document["href"]})


@contextmanager
def _in_flight(gateway: Gateway, caller: str, key: str) -> Iterator[None]:
    """Let one request with a key at a time be worked on here; of two that go to different gateways, Postgres lets one wait."""
    name = (caller, key)
    if name in gateway.in_flight:
        raise Problem(409, "A request with this key is being worked on; repeat yours in a moment.", code="idempotency_in_flight",
                      field="Idempotency-Key", headers={"Retry-After": "1"})  # fmt: skip
    gateway.in_flight.add(name)
    try:
        yield
    finally:
        gateway.in_flight.discard(name)
