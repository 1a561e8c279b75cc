"""The gate before dispatch: jobs that a limit concerns wait in Postgres, by what they are limited by, until it admits them.

Jobs with the same limits and keys stand in one line; a round admits from the head of each line in turn, so that no backlog stands
before another. What is not admitted is not touched: it neither goes through the broker nor has a row rewritten.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import psycopg

from worker.errors import InvalidJob, InvalidLimit, LedgerUnavailable, StoreUnavailable
from worker.ledger import limits
from worker.ledger.message import NewJob, decode
from worker.ledger.publish import Sendable
from worker.limits import Charge, ask_many
from worker.limits.policy import limiter_of, parse_policy
from worker.limits.scope import scope
from worker.telemetry import OUTAGES, log

logger = log(__name__)

#: Lines that one round looks at in one queue; the next round goes on behind the last.
_LINES = 200
#: Jobs of one line that are charged in one round trip, which must keep to the short deadline of a decision.
_AT_ONCE = 100
#: The longest a line is left alone, in seconds: its limit may have been changed or reset meanwhile.
_LONGEST_S = 1.0

#: Hops from line to line over the index, so the cost is that of the lines, not of the jobs in them.
_WAITING = """
WITH RECURSIVE hop AS (
  (SELECT gate FROM jobs WHERE queue = %(queue)s AND gate IS NOT NULL AND gate > %(beyond)s AND dispatch_epoch IS NULL
      AND state IN ('scheduled', 'queued') ORDER BY gate LIMIT 1)
  UNION ALL
  SELECT (SELECT j.gate FROM jobs j WHERE j.queue = %(queue)s AND j.gate IS NOT NULL AND j.gate > hop.gate
             AND j.dispatch_epoch IS NULL AND j.state IN ('scheduled', 'queued') ORDER BY j.gate LIMIT 1)
    FROM hop WHERE hop.gate IS NOT NULL)
SELECT gate FROM hop WHERE gate IS NOT NULL LIMIT %(limit)s
"""
_HEAD = """
SELECT id FROM jobs
 WHERE queue = %(queue)s AND gate = %(gate)s AND gate IS NOT NULL AND dispatch_epoch IS NULL AND state IN ('scheduled', 'queued')
   AND available_at <= clock_timestamp()
 ORDER BY priority, available_at, id LIMIT %(room)s FOR UPDATE SKIP LOCKED
"""
_SEND = """
UPDATE jobs SET state = 'queued', dispatch_epoch = %(epoch)s, dispatched_at = clock_timestamp() WHERE id = ANY(%(ids)s)
RETURNING id, queue, priority, revision, message, (extract(epoch FROM dispatched_at) * 1000)::int8
"""
#: A job that was sent and finds no slot: it waits on, in its place, and has not been tried.
_PUT_BACK = """
UPDATE jobs SET dispatch_epoch = NULL, dispatched_at = NULL WHERE id = %s AND state = 'queued' AND revision = %s RETURNING id
"""

#: What tasks declare: by task, the limits each of its jobs is charged for.
_declared: dict[str, tuple[str, ...]] = {}


# ---- what a job is limited by


def declare(task: str, texts: Sequence[str]) -> None:
    """Let a task's jobs be charged for limits such as `host:{kwargs[host]} 10/second local`. Raises `InvalidLimit`."""
    for text in texts:
        _parsed(text)
    _declared[task] = tuple(texts)


@lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[str, str, str, str]:
    """Return name, template, rate and outage policy."""
    head, _, rest = text.strip().partition(" ") if isinstance(text, str) else ("", "", "")
    name, colon, template = head.partition(":")
    if not colon:
        raise InvalidLimit(f"limits: {text!r} is not a name, a colon, a template and a rate: host:{{kwargs[host]}} 10/second")
    policy = parse_policy(f"{name} {template} {rest}")
    return name, template, policy["rate"], policy["on_outage"]


def gate_of(job: NewJob) -> str | None:
    """Return the line a job waits in; None for one that nothing limits. Raises `InvalidJob` when it lacks what names a key."""
    declared = _declared.get(job.task, ())
    policies = [p for p in limits.policies() if p["kind"] == "limit" and p["enabled"]]
    if not declared and not policies:
        return None
    known = _known(job)
    found: dict[str, list[Any]] = {}
    for policy in policies:
        key = scope(policy["scope"]).key(known)
        if key is not None:
            found[policy["name"]] = [policy["name"], key, None, None]
    for name, template, rate, on_outage in map(_parsed, declared):
        key = scope(template).key(known)
        if key is None:
            raise InvalidJob(f"{job.task}: its limit {name!r} goes by {template}, which this call does not have")
        found[name] = [name, key, rate, on_outage]
    return json.dumps([found[name] for name in sorted(found)], separators=(",", ":")) if found else None


def _known(job: NewJob) -> Mapping[str, Any]:
    args, kwargs, _ = decode(job.message["body"])
    return {"task": job.task, "queue": job.queue, "caller": job.caller, "args": args, "kwargs": kwargs}


def charges_of(gate: str) -> list[Charge]:
    """Return what the jobs of a line are charged for, as the policies say by now."""
    kept = {policy["name"]: policy for policy in limits.policies() if policy["kind"] == "limit"}
    found = []
    for name, key, rate, on_outage in json.loads(gate):
        policy = kept.get(name)
        if policy is not None:
            rate, on_outage = policy["rate"], policy["on_outage"]
        if rate is not None and (policy is None or policy["enabled"]):
            found.append(limiter_of(name, rate, on_outage).on(key))
    return found


# ---- letting jobs through


class Gate:
    """The lines of the queues as one relay sees them; it remembers which of them need not be asked again yet."""

    def __init__(self) -> None:
        self._closed_until: dict[tuple[str, str], float] = {}
        self._beyond: dict[str, str] = {}

    def take_due(self, conn: psycopg.Connection[Any], queue: str, room: int, epoch: str) -> list[Sendable]:
        """Mark as sent what the limits of a queue admit, from each line in turn, and return it, to be published after that."""
        lines = self._open_lines(conn, queue)
        taken: list[Sendable] = []
        for place, gate in enumerate(lines):
            # Each line gets its part of the room that is left: one that admits little leaves more to those behind it.
            part = max(1, (room - len(taken)) // (len(lines) - place))
            if len(taken) >= room:
                break
            try:
                taken += self._admit(conn, queue, gate, part, epoch)
            except (LedgerUnavailable, StoreUnavailable):
                raise
            except Exception:  # A line may be anybody's who writes SQL: it must not hold up those behind it.
                OUTAGES.labels("gate", "line left waiting").inc()
                logger.exception("the jobs of a line cannot be let through", queue=queue, gate=gate[:200])
                self._closed_until[queue, gate] = time.monotonic() + _LONGEST_S
        return taken

    def _open_lines(self, conn: psycopg.Connection[Any], queue: str) -> list[str]:
        now = time.monotonic()
        values = {"queue": queue, "beyond": self._beyond.get(queue, ""), "limit": _LINES}
        found = [row[0] for row in conn.execute(_WAITING, values).fetchall()]
        self._beyond[queue] = found[-1] if len(found) == _LINES else ""
        self._closed_until = {line: until for line, until in self._closed_until.items() if until > now}
        return [gate for gate in found if (queue, gate) not in self._closed_until]

    def _admit(self, conn: psycopg.Connection[Any], queue: str, gate: str, room: int, epoch: str) -> list[Sendable]:
        with conn.transaction():
            ids = [row[0] for row in conn.execute(_HEAD, {"queue": queue, "gate": gate, "room": min(room, _AT_ONCE)}).fetchall()]
            charges = charges_of(gate)
            decisions = ask_many(charges, ids) if charges else []
            refusals = [decision for decision in decisions if not decision]
            if refusals or not ids:
                wait_s = refusals[0].retry_after_s if refusals else _LONGEST_S / 10
                self._closed_until[queue, gate] = time.monotonic() + min(wait_s, _LONGEST_S)
            admitted = [job_id for job_id, decision in zip(ids, decisions, strict=True) if decision] if charges else ids
            if not admitted:
                return []
            rows = conn.execute(_SEND, {"ids": admitted, "epoch": epoch}).fetchall()
        place = {job_id: number for number, job_id in enumerate(admitted)}
        sent = [
            Sendable(job_id, queue, priority, revision, message, epoch, sent_ms, gate)
            for job_id, _, priority, revision, message, sent_ms in rows
        ]
        return sorted(sent, key=lambda job: place[job.id])


def put_back(conn: psycopg.Connection[Any], job_id: str, revision: int) -> bool:
    """Let a job that was sent wait on in its line, without an attempt; tell whether it still waited to be claimed."""
    return conn.execute(_PUT_BACK, (job_id, revision)).fetchone() is not None
