"""The OpenAPI document: what FastAPI tells by itself, the bodies it does not read, and the errors of every route."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from worker.gateway.calls import KEY_PATTERN
from worker.gateway.problems import MEDIA_TYPE
from worker.gateway.shapes import ProblemDetails

_LONGEST = {"minLength": 1, "maxLength": 255, "pattern": r"^[^\x00]*$"}
_NUMBER = r"[0-9]+(\.[0-9]+)?"
_DURATION = rf"^\s*({_NUMBER}|({_NUMBER}([mM][sS]|[sSmMhHdDwW]))+)\s*$"
_FARTHEST_S = 3_155_760_000


def _or_null(*forms: dict[str, Any], text: str) -> dict[str, Any]:
    return {"description": text, "anyOf": [*forms, {"type": "null"}]}


_SECONDS = {"type": "number", "minimum": 0, "maximum": _FARTHEST_S}
_SPAN = {"type": "string", "pattern": _DURATION}
_MOMENT = {"type": "string", "format": "date-time"}
_NAME = {"type": "string", **_LONGEST}

_JOB = {
    "type": "object",
    "required": ["task"],
    "additionalProperties": False,
    "properties": {
        "task": {**_NAME, "description": "The task's name, as GET /v1/tasks lists it."},
        "args": _or_null({"type": "array"}, text="Its arguments by place."),
        "kwargs": _or_null({"type": "object"}, text="Its arguments by name, as the task's schema says."),
        "queue": _or_null(_NAME, text="The queue; by default the task's own."),
        "priority": _or_null({"type": "integer", "minimum": 0, "maximum": 9}, text="0 goes first, 9 last; by default 5."),
        "delay": _or_null(_SECONDS, _SPAN, text="Seconds, or 90s, 5m, 1h30m, after which it may start; not with `at`."),
        "at": _or_null(_MOMENT, text="The moment from which on it may start."),
        "expires": _or_null(_SECONDS, _SPAN, _MOMENT, text="After this long, or this moment, it does not start any more."),
        "max_attempts": _or_null({"type": "integer", "minimum": 1, "maximum": 1_000_000}, text="Attempts, of whatever outcome."),
        "unique": _or_null(_NAME, text="At most one active job of the task has this text; another call finds that job."),
        "unique_for": _or_null(_SECONDS, _SPAN, text="How long that holds at most; with `unique`."),
        "callback_url": _or_null({"type": "string"}, text="Who is told of its end."),
        "metadata": _or_null({"type": "object"}, text="Whatever is to be found again on the job; 4 kB at most."),
    },
}
_ITEM = {
    **_JOB,
    "properties": {**_JOB["properties"], "idempotency_key": _or_null(_NAME, text="Makes this job repeatable.")},  # type: ignore[dict-item]
}
_BATCH = {
    "type": "object",
    "required": ["jobs"],
    "additionalProperties": False,
    "properties": {
        "jobs": {"type": "array", "minItems": 1, "maxItems": 10_000, "items": {"anyOf": [
            {"$ref": "#/components/schemas/BatchJob"},
            {"description": "Anything else is refused by itself, and with `all` the batch."},
        ]}},
        "all": {"type": "boolean", "description": "Whether one bad job refuses the batch; by default not."},
    },
}


def _body(schema: str, example: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


_CALL = {"task": "http.call", "kwargs": {"url": "https://example.org/"}}
POST_JOB: dict[str, Any] = {
    "parameters": [{
        "name": "Idempotency-Key", "in": "header", "required": False, "schema": {"type": "string", "pattern": KEY_PATTERN},
        "description": "Makes the request repeatable for a day (draft-ietf-httpapi-idempotency-key-header).",
    }],
    **_body("NewJob", _CALL),
}  # fmt: skip
POST_BATCH: dict[str, Any] = _body("NewBatch", {"jobs": [_CALL], "all": True})

#: What may come of any request, and what of those with a key, a body or a job.
_ANY = {400: "No HTTP, or no JSON.", 431: "Too many headers, or too large.", 500: "The gateway failed."}
_KEYED = {401: "No key that counts.", 403: "The key is not for this.", 422: "A part of the request is wrong.",
          429: "Over the caller's rate.", 503: "Postgres does not answer."}  # fmt: skip
_BODIED = {413: "The body, or what is in it, is too large.", 415: "The body is no JSON."}
_OF_A_JOB = {404: "No such job, or another caller's."}
_CONFLICTS = {
    "postJob": "The first request with this key is not answered yet.", "cancelJob": "It has ended.",
    "retryJob": "It waits for no time, runs, or succeeded.",
}  # fmt: skip


def describe(app: FastAPI) -> None:
    """Let the application tell the whole document, made once."""

    def document() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = _complete(
                get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            )
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.update(NewJob=_JOB, BatchJob=_ITEM, NewBatch=_BATCH)
    schemas.setdefault("ProblemDetails", ProblemDetails.model_json_schema())
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    key = {"type": "http", "scheme": "bearer", "description": "As `holdfast callers add` prints it."}
    components["securitySchemes"] = {"key": key}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _complete_operation(path, operation)
    return document


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter that may be left out: an address has no null."""
    forms = [form for form in schema.get("anyOf", ()) if form != {"type": "null"}]
    if len(forms) != 1:
        return schema
    return {**{name: value for name, value in schema.items() if name != "anyOf"}, **forms[0]}


def _complete_operation(path: str, operation: dict[str, Any]) -> None:
    keyed, asked_deep = path.startswith("/v1/") or path == "/metrics", path == "/readyz"
    errors = dict(_ANY)
    if keyed or asked_deep:
        operation["security"] = [{"key": []}] if keyed else [{}, {"key": []}]
        errors |= _KEYED
    if "requestBody" in operation:
        errors |= _BODIED
    if "{job_id}" in path:
        errors |= _OF_A_JOB
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _without_null(parameter["schema"])
    if operation["operationId"] in _CONFLICTS:
        errors[409] = _CONFLICTS[operation["operationId"]]
    if asked_deep:
        errors[503] = "Postgres is away or not migrated."
    if 422 not in errors:
        operation["responses"].pop("422", None)
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    for status, text in sorted(errors.items()):
        operation["responses"][str(status)] = {"description": text, "content": content}
