"""Foreign messages, which have no row yet: peeked at in their queue, made rows, and only then taken out.

The queue itself is the unacknowledged set: a message leaves it after its row has committed, so whoever dies in between, it is
adopted by the next, and adopting twice is one job, since the id is the message's own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from worker.clock import parse_moment
from worker.errors import StoreUnavailable
from worker.ledger.message import DOOR, NewJob, encode, fault_of
from worker.settings import settings
from worker.store import coordination, keys
from worker.telemetry import log

logger = log(__name__)

#: Messages looked at in one round.
_ROUND = 200

#: Held by whoever sets a message aside or replays it, until that commits.
LOCK_ENTRY = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"

#: Known by the digest of its bytes, so that setting it aside twice is one entry.
_SET_ASIDE = """
INSERT INTO job_history (id, task, queue, state, message, error)
SELECT %(id)s, %(task)s, %(queue)s, 'discarded', %(message)s::json, %(error)s
 WHERE NOT EXISTS (SELECT FROM job_history WHERE id = %(id)s)
"""


@dataclass(frozen=True, slots=True)
class Unsound:
    """A message that cannot become a job, and why."""

    raw: bytes
    reason: str


def peek_foreign() -> list[tuple[str, bytes]]:
    """Return the messages that wait for adoption, oldest first, each with the list it lies in. Raises `StoreUnavailable`."""
    lists = keys.queue_lists(settings().foreign_queue)
    with coordination().use() as client:
        pipe = client.pipeline(transaction=False)
        for key in lists:
            pipe.lrange(key, -_ROUND, -1)
        found = pipe.execute()
    return [(key, raw) for key, raws in zip(lists, found, strict=True) for raw in reversed(raws)]


def take_out(adopted: list[tuple[str, bytes]]) -> None:
    """Remove messages whose rows have committed; what Redis cannot remove now is met again and known."""
    try:
        with coordination().use() as client:
            pipe = client.pipeline(transaction=False)
            for key, raw in adopted:
                pipe.lrem(key, -1, raw)  # type: ignore[arg-type]
            pipe.execute()
    except StoreUnavailable:
        logger.warning("adopted messages stay in their queue until Redis is back", count=len(adopted))


def read(raw: bytes, known: Callable[[str], bool], route: Callable[[str], str]) -> NewJob | Unsound:
    """Return the job a foreign message (protocol 2 or 1) asks for, or why it cannot be one.

    `known` tells whether a task is registered, `route` names the queue for it.
    """
    try:
        job = _job(raw, route)
    except Exception as exc:  # A stranger's bytes can be wrong in any way, and none may end the relay.
        return Unsound(raw, f"not a Celery message: {type(exc).__name__}: {exc}")
    return job if known(job.task) else Unsound(raw, f"unknown task {job.task!r}")


def _job(raw: bytes, route: Callable[[str], str]) -> NewJob:
    headers, properties, body = _parts(json.loads(raw))
    task, job_id = headers["task"], headers["id"]
    for name in ("task", "id", "root_id", "parent_id", "group"):
        text = headers.get(name) or ""
        if not isinstance(text, str) or "\0" in text or len(text) > 255:
            raise TypeError(f"{name} {str(headers[name])[:60]!r} is not a text of at most 255 characters")
    message = {
        "headers": {"lang": "py", "retries": 0, "timelimit": [None, None], "origin": "", **headers, DOOR: "celery"},
        "properties": {"reply_to": properties.get("reply_to") or "", "correlation_id": job_id},
        "body": body, "content-type": "application/json", "content-encoding": "utf-8",
    }  # fmt: skip
    if fault := fault_of(message, job_id):
        raise ValueError(fault)
    encode(message)  # so that what Postgres could not hold, half a surrogate pair, is found here
    args, kwargs, _ = json.loads(body)
    # Clients that name no priority send 0, which is the first on Redis: they get the usual one.
    given = properties.get("priority")
    return NewJob(
        id=job_id, task=task, queue=route(task), message=message,
        priority=given if type(given) is int and 0 < given < 10 else 5,
        args=str(headers.get("argsrepr") or tuple(args))[:1024], kwargs=str(headers.get("kwargsrepr") or kwargs)[:1024],
        available_at=parse_moment(headers["eta"]) if headers.get("eta") else None,
        expires_at=parse_moment(headers["expires"]) if headers.get("expires") else None, caller="celery",
        parent_id=headers.get("parent_id"), root_id=headers.get("root_id") or job_id, group_id=headers.get("group"),
    )  # fmt: skip


def _parts(payload: Any) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return headers, properties and the text of a body of protocol 2."""
    properties = payload["properties"]
    if payload.get("content-type", "application/json") != "application/json":
        raise ValueError(f"content type {payload['content-type']!r} is not allowed; Holdfast takes JSON only")
    text = payload["body"]
    if properties.get("body_encoding") == "base64":
        text = base64.b64decode(text, validate=True).decode()
    headers, body = payload.get("headers") or {}, json.loads(text)
    if not isinstance(body, dict):
        return headers, properties, text
    # Protocol 1: everything is in the body.
    kept = {k: body.get(k) for k in ("task", "id", "eta", "expires", "retries", "timelimit")}
    embed = {k: body.get(k) for k in ("callbacks", "errbacks", "chord")}
    headers = {**headers, **{k: v for k, v in kept.items() if v is not None}, "group": body.get("taskset")}
    return headers, properties, json.dumps([body.get("args", []), body.get("kwargs", {}), embed])


def set_aside(conn: psycopg.Connection[Any], unsound: Unsound) -> str:
    """Keep a message that cannot become a job in history, with the reason, to be listed and replayed; return its id."""
    entry = "raw-" + hashlib.sha256(unsound.raw).hexdigest()[:32]
    raw = base64.b64encode(unsound.raw).decode()
    with conn.transaction():
        conn.execute(LOCK_ENTRY, (entry,))
        conn.execute(_SET_ASIDE, {
            "id": entry, "task": "(unreadable)", "queue": settings().foreign_queue,
            "message": encode({"raw": raw}).decode(), "error": unsound.reason.replace("\0", "\ufffd"),
        })  # fmt: skip
    return entry
