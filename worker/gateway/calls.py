"""From a request to a job that can be accepted: what the body says, whether the task takes it, and whether this caller may."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from worker.engine.application import Holdfast
from worker.engine.calls import new_job, read_call
from worker.errors import HoldfastError, InvalidJob
from worker.gateway.problems import Problem, problem_of
from worker.ledger.callers import Caller
from worker.ledger.message import NewJob

#: A string of structured fields (RFC 9651), as the draft on the header asks for, or the bare text most clients send.
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\]){1,255})"')
_BARE = re.compile(r"[!#-~][!-~]{0,254}")
#: Both, as the OpenAPI document tells them.
KEY_PATTERN = r'^("([ !#-\[\]-~]|\\["\\]){1,255}"|[!#-~][!-~]{0,254})$'


def idempotency_key(request: Request) -> str | None:
    """Return the key of the header `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header). Raises `Problem` 400."""
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    if len(given) == 1:
        if found := _QUOTED.fullmatch(given[0]):
            return re.sub(r"\\(.)", r"\1", found[1])
        if _BARE.fullmatch(given[0]):
            return given[0]
    raise Problem(400, 'The idempotency key is one header of 1 to 255 visible characters, as in "8e03978e-40d5".',
                  code="invalid_idempotency_key", field="Idempotency-Key")  # fmt: skip


def job_from(celery: Holdfast, caller: Caller, values: Any) -> NewJob:
    """Return the job that a JSON object asks for. Raises `InvalidJob` or one of its kinds, and `Problem` 403."""
    if isinstance(values, Mapping) and "caller" in values:
        raise InvalidJob("caller: it is told by the key of the request", field="caller")
    call = read_call(values)
    if not caller.may_task(call.task):
        raise Problem(403, f"This key is not for task {call.task!r}.", code="task_not_allowed", field="task")
    call.caller, call.door = caller.name, "http"
    job = new_job(celery, call)
    if not caller.may_queue(job.queue):
        raise Problem(403, f"This key is not for queue {job.queue!r}.", code="queue_not_allowed", field="queue")
    return job


def refusal(exc: Exception, *, at: str = "") -> Problem:
    """Return the problem for which one job is refused, its field inside what stands at `at`. Raises what is no refusal."""
    problem = problem_of(exc) if isinstance(exc, Problem | HoldfastError) else None
    if problem is None:
        raise exc
    if at:
        problem = Problem(problem.status, problem.detail, code=problem.code, headers=problem.headers,
                          field=f"{at}.{problem.field}" if problem.field else at)  # fmt: skip
    return problem


def told(job_id: str) -> dict[str, str]:
    """Return what an accepted job is answered with: nothing that changes, so that a repeat is answered with the same."""
    return {"id": job_id, "href": f"/v1/jobs/{job_id}"}
