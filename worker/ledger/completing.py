"""Rows written by SQL: what only Python can tell, the line of their limits and their uniqueness, is found out before sending.

Such a row stands in a line of its own until then, so that no relay sends it past its limits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from kombu.utils.json import loads

from worker.errors import InvalidJob, LedgerUnavailable, StoreUnavailable
from worker.ledger.lines import INCOMPLETE, gate_of
from worker.ledger.message import Message, NewJob, fault_of

#: Of those tasks this process knows: a relay that does not know a task cannot know its limits.
_TAKE = f"""
SELECT id, task, queue, priority, message, caller, unique_key FROM jobs
 WHERE queue = %(queue)s AND gate = '{INCOMPLETE}' AND gate IS NOT NULL AND dispatch_epoch IS NULL
   AND state IN ('scheduled', 'queued') AND task = ANY(%(tasks)s)
 ORDER BY priority, available_at, id LIMIT %(most)s FOR UPDATE SKIP LOCKED
"""
_STRANGE = f"""
SELECT DISTINCT task FROM jobs
 WHERE queue = %(queue)s AND gate = '{INCOMPLETE}' AND gate IS NOT NULL AND dispatch_epoch IS NULL
   AND state IN ('scheduled', 'queued') AND NOT task = ANY(%(tasks)s)
"""
_COMPLETE = f"""
UPDATE jobs SET gate = found.gate FROM unnest(%(ids)s::text[], %(gates)s::text[]) AS found(id, gate)
 WHERE jobs.id = found.id AND jobs.gate = '{INCOMPLETE}'
"""
_FORGET_UNIQUE = "UPDATE jobs SET unique_key = NULL WHERE unique_key = %s AND unique_until < clock_timestamp()"
_MAKE_UNIQUE = """
UPDATE jobs SET unique_key = %(key)s, unique_until = clock_timestamp() + %(for_s)s * interval '1 second'
 WHERE id = %(id)s AND NOT EXISTS (SELECT FROM jobs other WHERE other.unique_key = %(key)s AND other.id <> %(id)s)
RETURNING id
"""
_UNIQUE_HOLDER = "SELECT id FROM jobs WHERE unique_key = %s"

#: Rows that one round looks at in one queue.
MOST = 500

#: Returns the unique key a task gives a call and for how long it holds, in seconds; None for a task that gives none.
Uniqueness = Callable[[str, list[Any], dict[str, Any]], tuple[str, float] | None]


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that cannot be sent: it says nothing a worker could take, or another active job stands for it."""

    job_id: str
    why: str
    #: The active job that has its unique key.
    holder: str | None = None


def complete(conn: psycopg.Connection[Any], queue: str, tasks: list[str], uniqueness: Uniqueness) -> tuple[int, list[Refused]]:
    """Complete rows of a queue, due or not; return how many were looked at, and those that must end instead.

    What is refused stays in its line until whoever asked has ended it, and is met again if that is nobody.
    """
    refused: list[Refused] = []
    gates: dict[str, str | None] = {}
    with conn.transaction():
        rows = conn.execute(_TAKE, {"queue": queue, "tasks": tasks, "most": MOST}).fetchall()
        for job_id, task, _, priority, message, caller, unique_key in rows:
            found = _looked_at(conn, job_id, task, queue, priority, message, caller, unique_key, uniqueness)
            if isinstance(found, Refused):
                refused.append(found)
            else:
                gates[job_id] = found
        if gates:
            conn.execute(_COMPLETE, {"ids": list(gates), "gates": list(gates.values())})
    return len(rows), refused


def strange(conn: psycopg.Connection[Any], queue: str, tasks: list[str]) -> list[str]:
    """Return the tasks of rows that wait to be completed and that this process does not know."""
    return [row[0] for row in conn.execute(_STRANGE, {"queue": queue, "tasks": tasks}).fetchall()]


def _looked_at(
    conn: psycopg.Connection[Any], job_id: str, task: str, queue: str, priority: int, message: Message, caller: str | None,
    unique_key: str | None, uniqueness: Uniqueness,
) -> str | Refused | None:  # fmt: skip
    """Return the line a row is to wait in, or why it cannot be sent."""
    if fault := fault_of(message, job_id):
        return Refused(job_id, f"the message cannot be sent: {fault}")
    job = NewJob(job_id, task, queue, message, priority=priority, caller=caller)
    try:
        gate = gate_of(job)
        own = uniqueness(task, *_arguments(message)) if unique_key is None else None
    except InvalidJob as exc:
        return Refused(job_id, str(exc))
    except (LedgerUnavailable, StoreUnavailable):
        raise
    except Exception as exc:  # Whoever writes SQL finds what nobody foresaw, and must not hold up the rows behind.
        return Refused(job_id, f"it cannot be completed: {exc!r}")
    if own is not None and (holder := _make_unique(conn, job_id, *own)):
        return Refused(job_id, f"job {holder} is active and has its unique key", holder)
    return gate


def _arguments(message: Message) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs, _ = loads(message["body"])
    return args, kwargs


def _make_unique(conn: psycopg.Connection[Any], job_id: str, key: str, for_s: float) -> str | None:
    """Give the row its unique key, or return the active job that has it."""
    conn.execute(_FORGET_UNIQUE, (key,))
    try:
        with conn.transaction():
            if conn.execute(_MAKE_UNIQUE, {"id": job_id, "key": key, "for_s": for_s}).fetchone():
                return None
    except psycopg.errors.UniqueViolation:
        pass
    holder = conn.execute(_UNIQUE_HOLDER, (key,)).fetchone()
    return str(holder[0]) if holder else None
