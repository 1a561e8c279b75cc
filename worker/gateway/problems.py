"""Errors as problem details (RFC 9457): every answer that is no success is one."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from worker import errors

MEDIA_TYPE = "application/problem+json"
#: Where each code is explained; a reference relative to the gateway itself.
_TYPES = "/problems/"

#: Seconds after which to come again where nobody can tell better.
_AGAIN_S = 1

#: The status and, where the error does not bring its own, the code; the first that fits decides.
_KINDS: tuple[tuple[type[BaseException], int, str], ...] = (
    (errors.UnknownTask, 422, "unknown_task"),
    (errors.UnknownQueue, 422, "unknown_queue"),
    (errors.MessageTooLarge, 413, "too_large"),
    (errors.InvalidJob, 422, "invalid_job"),
    (errors.IdempotencyConflict, 422, "idempotency_conflict"),
    (errors.KeyInFlight, 409, "idempotency_in_flight"),
    (errors.JobNotFound, 404, "job_not_found"),
    (errors.InvalidLimit, 422, "invalid_request"),
    (errors.SchemaOutdated, 503, "schema_outdated"),
    (errors.LedgerUnavailable, 503, "ledger_unavailable"),
    (errors.StoreUnavailable, 503, "store_unavailable"),
    (errors.LoadFailed, 503, "ledger_unavailable"),
)
#: The codes of errors that HTTP itself has.
_CODES = {400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
          413: "too_large", 415: "unsupported_media_type", 422: "invalid_request", 431: "headers_too_large",
          429: "rate_limited", 500: "internal_error", 503: "unavailable"}  # fmt: skip


class Problem(Exception):
    """An answer that is no success."""

    def __init__(
        self, status: int, detail: str, *, code: str = "", field: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.field = status, detail, field
        self.code = code or _CODES.get(status, "error")
        self.headers = dict(headers or {})

    def document(self, instance: str = "") -> dict[str, Any]:
        """Return the problem as its JSON object; `field` names what was wrong of the request, if one part of it was."""
        told: dict[str, Any] = {
            "type": f"{_TYPES}{self.code}", "title": HTTPStatus(self.status).phrase, "status": self.status,
            "detail": self.detail, "code": self.code,
        }  # fmt: skip
        if self.field:
            told["field"] = self.field
        return {**told, "instance": instance} if instance else told

    def response(self, instance: str = "") -> Response:
        """Return the answer."""
        return Response(
            msgspec.json.encode(self.document(instance)), self.status, media_type=MEDIA_TYPE, headers=self.headers
        )


def problem_of(exc: BaseException) -> Problem | None:
    """Return the problem that one of our errors is to a client; None for one that is our own fault."""
    if isinstance(exc, Problem):
        return exc
    for kind, status, code in _KINDS:
        if isinstance(exc, kind):
            headers = {"Retry-After": str(_AGAIN_S)} if status in (409, 503) else {}
            # What a server is called and where it stands is nobody's business out there.
            detail = _AWAY.get(code) or str(exc)
            return Problem(status, detail, code=getattr(exc, "code", None) or code, field=getattr(exc, "field", None),
                           headers=headers)  # fmt: skip
    return None


_AWAY = {
    "schema_outdated": "The database is not migrated.",
    "ledger_unavailable": "Postgres does not answer. Try again, with the same idempotency key if there was one.",
    "store_unavailable": "Redis does not answer.",
}


async def answer(request: Request, exc: Exception) -> Response:
    """Answer a request with what went wrong; raises what is our own fault, for the outermost layer to count and tell."""
    problem = problem_of(exc)
    if problem is None:
        raise exc
    return problem.response(instance_of(request))


def instance_of(request: Request) -> str:
    """Return the reference of one request, by which its line in the log is found."""
    request_id = request.scope.get("state", {}).get("request_id", "")
    return f"urn:holdfast:request:{request_id}" if request_id else ""
