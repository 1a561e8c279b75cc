"""A job's Celery message (protocol 2): how it is kept in the row and how it goes on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import msgspec
from kombu.utils.json import loads

#: The header by which a worker knows a message that has a row. Its value: revision `r`, moment sent `t` (ms since 1970),
#: and the line `g` it was let out of, if any. The worker that took it adds the token `l` of the lock it took with it, if any, and
#: the moment `p` at which it asked, and until when it may wait for a child, `u` (seconds of the machine's monotonic clock).
HEADER = "holdfast"
#: The last key of a payload: the job's id, where `queue_pop.lua` finds it without reading the rest.
JOB = "job"
#: The header that names the door a job came in by, for the switches `door:<name>`; jobs that code enqueues have none.
DOOR = "holdfast_door"
#: What it says.
DOORS = ("http", "sql", "stream", "import", "cli", "celery", "beat")

#: A stored message: `headers`, `properties`, `body` (text), `content-type`, `content-encoding`.
Message = dict[str, Any]

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder().decode


@dataclass(slots=True)
class NewJob:
    """A job that is to be accepted. Times are a moment, or seconds from Postgres's now; a moment wins."""

    id: str
    task: str
    queue: str
    message: Message
    priority: int = 5
    args: str = "()"
    kwargs: str = "{}"
    available_at: datetime | None = None
    delay_s: float = 0.0
    expires_at: datetime | None = None
    expires_s: float | None = None
    max_attempts: int | None = None
    caller: str | None = None
    idempotency_key: str | None = None
    unique_key: str | None = None
    unique_for_s: float | None = None
    parent_id: str | None = None
    root_id: str | None = None
    group_id: str | None = None
    #: Whether the id was made just now, so that no job of the past can have it.
    fresh: bool = False
    #: The line it waits in, as accepting it finds out.
    gate: str | None = None
    #: Who is told of its end.
    callback_url: str | None = None
    #: What its caller wants to find again on it: a JSON object.
    metadata: dict[str, Any] | None = None

    @property
    def immediate(self) -> bool:
        """Tell whether the job may start at once."""
        return self.available_at is None and self.delay_s <= 0


def wire(message: Message, queue: str, priority: int, revision: int, sent_ms: int, gate: str | None = None) -> bytes:
    """Return the message as workers take it from Redis; `sent_ms` is when that was by the clock of Postgres.

    Times are left out: when a job is sent it is due, and whether it has expired is for Postgres to say, not for a worker's clock.
    """
    ours = {"r": revision, "t": sent_ms} if gate is None else {"r": revision, "t": sent_ms, "g": gate}
    headers = {**message["headers"], "eta": None, "expires": None, HEADER: ours}
    properties = {
        **message["properties"],
        "priority": priority,
        "delivery_mode": 2,
        "delivery_tag": str(uuid4()),
        "delivery_info": {"exchange": "", "routing_key": queue},
    }
    form = {"content-type": "application/json", "content-encoding": "utf-8"}
    return encode({**message, **form, "headers": headers, "properties": properties, JOB: headers["id"]})


def fault_of(message: Any, job_id: str) -> str | None:
    """Return why a stored message cannot be sent, None when it can: a row may come from anybody who writes SQL."""
    if not isinstance(message, dict) or not isinstance(headers := message.get("headers"), dict):
        return "it has no headers"
    if not isinstance(headers.get("task"), str) or headers.get("id") != job_id:
        return "its headers do not hold the task's name as `task` and the job's id as `id`"
    if not is_timelimit(headers.get("timelimit")):
        return "its timelimit is not [hard, soft] in seconds"
    if not isinstance(message.get("properties"), dict):
        return "it has no properties"
    # Celery's JSON builds dates, UUIDs and the like, each of which fails in its own way.
    try:
        loads(encode({"headers": headers, "properties": message["properties"]}))
    except Exception as exc:
        return f"its headers or properties cannot be read back: {exc!r}"
    try:
        args, kwargs, embed = loads(message["body"])
        if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(embed, dict | None):
            raise TypeError("not a list and an object")
    except Exception as exc:
        return f"its body is not the JSON text of [args, kwargs, embed]: {exc!r}"
    return None


def is_timelimit(value: Any) -> bool:
    """Tell whether a header is a pair of time limits in seconds, or none."""
    return value is None or (
        isinstance(value, list | tuple) and len(value) == 2 and all(x is None or type(x) in (int, float) for x in value)
    )


def is_ours(payload: Any) -> bool:
    """Tell whether a decoded payload is sound enough for a worker and was sent for a row (or on purpose without one)."""
    return (
        isinstance(payload, dict)
        and isinstance(payload.get("body"), str | bytes)  # bytes: a delivery that Celery put back after a `Reject`
        and isinstance(headers := payload.get("headers"), dict)
        and HEADER in headers
        and isinstance(headers.get("task"), str)
        and isinstance(headers.get("id"), str)
        and isinstance(properties := payload.get("properties"), dict)
        and "delivery_tag" in properties
        and "delivery_info" in properties
    )


def sent_ms(payload: bytes) -> int | None:
    """Return when a payload on the wire was sent, in milliseconds since 1970; None when it does not say."""
    try:
        found = decode(payload)["headers"][HEADER]["t"]
    except (msgspec.MsgspecError, RecursionError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None
