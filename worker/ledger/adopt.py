"""Foreign messages, which have no row yet: peeked at in their queue, made rows, and only then taken out.

The queue itself is the unacknowledged set: a message leaves it after its row has committed, so whoever dies in between, it is
adopted by the next, and adopting twice is one job, since the id is the message's own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg

from worker.clock import parse_moment
from worker.errors import StoreUnavailable
from worker.ledger.message import NewJob, encode
from worker.settings import settings
from worker.store import coordination, keys
from worker.telemetry import log

logger = log(__name__)

#: Messages looked at in one round.
_ROUND = 200

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
        payload = msgspec.json.decode(raw)
        headers, properties, body = _parts(payload)
        args, kwargs, embed = body
        task, job_id = headers["task"], headers["id"]
        if not (isinstance(task, str) and isinstance(job_id, str) and isinstance(args, list) and isinstance(kwargs, dict)):
            raise TypeError("task and id must be texts, args a list, kwargs an object")
        moment = parse_moment(headers["eta"]) if headers.get("eta") else None
        expires = parse_moment(headers["expires"]) if headers.get("expires") else None
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError, LookupError) as exc:
        return Unsound(raw, f"not a Celery message: {type(exc).__name__}: {exc}")
    if not known(task):
        return Unsound(raw, f"unknown task {task!r}")
    # Clients that name no priority send 0, which is the first on Redis: they get the usual one.
    given = properties.get("priority")
    priority = given if isinstance(given, int) and 0 < given < 10 else 5
    message = {
        "headers": {"lang": "py", "retries": 0, "timelimit": [None, None], "origin": "", **headers},
        "properties": {"reply_to": properties.get("reply_to") or "", "correlation_id": job_id},
        "body": encode([args, kwargs, embed or {}]).decode(), "content-type": "application/json", "content-encoding": "utf-8",
    }  # fmt: skip
    return NewJob(
        id=job_id, task=task, queue=route(task), message=message, priority=priority,
        args=str(headers.get("argsrepr") or tuple(args))[:1024], kwargs=str(headers.get("kwargsrepr") or kwargs)[:1024],
        available_at=moment, expires_at=expires, caller="celery",
        parent_id=headers.get("parent_id"), root_id=headers.get("root_id") or job_id, group_id=headers.get("group"),
    )  # fmt: skip


def _parts(payload: Any) -> tuple[dict[str, Any], dict[str, Any], tuple[Any, Any, Any]]:
    properties = payload["properties"]
    if payload.get("content-type", "application/json") != "application/json":
        raise ValueError(f"content type {payload['content-type']!r} is not allowed; Holdfast takes JSON only")
    text = payload["body"]
    if properties.get("body_encoding") == "base64":
        text = base64.b64decode(text, validate=True)
    body = msgspec.json.decode(text)
    headers = payload.get("headers") or {}
    if isinstance(body, dict):  # Protocol 1: everything is in the body.
        kept = {k: body.get(k) for k in ("task", "id", "eta", "expires", "retries", "timelimit")}
        embed = {k: body.get(k) for k in ("callbacks", "errbacks", "chord")}
        headers = {**headers, **{k: v for k, v in kept.items() if v is not None}, "group": body.get("taskset")}
        return headers, properties, (body.get("args", []), body.get("kwargs", {}), embed)
    args, kwargs, embed = body
    return headers, properties, (args, kwargs, embed)


def set_aside(conn: psycopg.Connection[Any], unsound: Unsound) -> str:
    """Keep a message that cannot become a job in history, with the reason, to be listed and replayed; return its id."""
    entry = "raw-" + hashlib.sha256(unsound.raw).hexdigest()[:32]
    raw = base64.b64encode(unsound.raw).decode()
    conn.execute(_SET_ASIDE, {
        "id": entry, "task": "(unreadable)", "queue": settings().foreign_queue,
        "message": encode({"raw": raw}).decode(), "error": unsound.reason.replace("\0", "\ufffd"),
    })  # fmt: skip
    return entry
