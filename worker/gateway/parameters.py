"""The parameters of requests, as the OpenAPI document tells them, and how their texts are read."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import Depends, Path, Query
from starlette.convertors import CONVERTOR_TYPES, StringConvertor, register_url_convertor
from starlette.responses import Response

from worker.clock import parse_duration, parse_moment
from worker.gateway.auth import needs
from worker.gateway.problems import Problem
from worker.ledger.callers import Caller
from worker.settings import settings

#: A text without the one character that Postgres cannot keep.
_TEXT = r"^[^\x00]*$"
_MOMENT = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"
_DURATION = r"^\d{1,6}(\.\d{1,3})?(ms|s|m|h)?$"


class JobIdConvertor(StringConvertor):
    """An id in a path: up to the colon that an action stands behind."""

    regex = "[^/:]+"


if "job" not in CONVERTOR_TYPES:
    register_url_convertor("job", JobIdConvertor())

Reader = Annotated[Caller, Depends(needs("read"))]
Enqueuer = Annotated[Caller, Depends(needs("enqueue"))]
Admin = Annotated[Caller, Depends(needs("admin"))]

JobId = Annotated[str, Path(description="The job's id.", max_length=255, pattern=r"^[^/:\x00]+$")]
Text = Annotated[str | None, Query(max_length=255, pattern=_TEXT)]
Moment = Annotated[str | None, Query(pattern=_MOMENT, json_schema_extra={"format": "date-time"})]
Wait = Annotated[
    str | None,
    Query(pattern=_DURATION, description="Answer when the job has ended, or after this long: 30s.", examples=["30s"]),
]


def moment(field: str, text: str | None) -> datetime | None:
    """Return the moment a parameter names. Raises `Problem` 422."""
    if text is None:
        return None
    try:
        return parse_moment(text)
    except ValueError as exc:
        raise Problem(422, str(exc), field=field) from None


def seconds(field: str, text: str | None) -> float:
    """Return a duration in seconds, at most the setting `gateway_wait_s`; 0 for none. Raises `Problem` 422."""
    if text is None:
        return 0.0
    try:
        return min(parse_duration(text).total_seconds(), settings().gateway_wait_s)
    except ValueError as exc:
        raise Problem(422, str(exc), field=field) from None


def json_response(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return an answer of JSON."""
    return Response(msgspec.json.encode(document), status, media_type="application/json", headers=headers)
