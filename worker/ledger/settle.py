"""Ending an attempt: every way a job leaves `running`, and every way a job ends, each one guarded statement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from worker.db import first_row
from worker.ledger.message import NewJob, encode
from worker.states import HISTORY_COLUMNS, JobState

_COLUMNS = ", ".join(HISTORY_COLUMNS)

#: When a job is put off until something else sends it: far enough, and a moment every client can read.
NEVER = "9000-01-01 00:00+00"

_FINISH = f"""
WITH gone AS (DELETE FROM jobs WHERE id = %(id)s AND {{guard}} RETURNING *)
INSERT INTO job_history ({_COLUMNS}, state, error, result, children, traceback)
SELECT {_COLUMNS}, %(state)s, %(error)s, %(result)s::json, %(children)s::json, %(traceback)s FROM gone
RETURNING id
"""

#: A result for an id that never was a row of its own, such as the body of a chord whose header failed.
_RECORD = """
INSERT INTO job_history (id, task, queue, state, message, error, result, traceback)
SELECT %(id)s, %(task)s, '', %(state)s, '{}', %(error)s, %(result)s::json, %(traceback)s
 WHERE NOT EXISTS (SELECT FROM job_history WHERE id = %(id)s)
RETURNING id
"""

_BACK = """
WITH back AS (
  UPDATE jobs SET state = {state}, available_at = {available_at}, revision = revision + 1, claim_token = NULL,
         dispatch_epoch = NULL, dispatched_at = NULL, error = %(error)s {also}
   WHERE id = %(id)s AND state = 'running' AND {guard}
  RETURNING id, attempt, worker_id, claimed_at)
INSERT INTO attempts (job_id, attempt, worker_id, started_at, outcome, error, traceback)
SELECT id, attempt, worker_id, claimed_at, %(outcome)s, %(error)s, %(traceback)s FROM back
ON CONFLICT (job_id, attempt) DO UPDATE SET ended_at = excluded.ended_at, outcome = excluded.outcome, error = excluded.error
RETURNING job_id
"""

#: The attempt is taken back: it was claimed to find out that the job cannot run yet, and did nothing.
_SNOOZE = """
UPDATE jobs SET state = 'scheduled', available_at = clock_timestamp() + %(delay_s)s::float8 * interval '1 second',
       revision = revision + 1, attempt = attempt - 1, started_at = CASE WHEN attempt > 1 THEN started_at END, claim_token = NULL,
       dispatch_epoch = NULL, dispatched_at = NULL, error = %(error)s
 WHERE id = %(id)s AND state = 'running' AND {guard}
RETURNING id
"""


@dataclass(frozen=True, slots=True)
class Guard:
    """Who may end the attempt: its owner by token, the parent of its process by node and delivery, or anybody while it waits."""

    sql: str
    values: dict[str, Any]

    @classmethod
    def token(cls, token: UUID) -> Guard:
        """The attempt itself."""
        return cls("state = 'running' AND claim_token = %(token)s", {"token": token})

    @classmethod
    def parent(cls, worker_id: UUID, delivery_tag: str) -> Guard:
        """The process whose child ran the attempt and can no longer speak for itself."""
        return cls(
            "state = 'running' AND worker_id = %(worker)s AND delivery_tag = %(tag)s", {"worker": worker_id, "tag": delivery_tag}
        )

    @classmethod
    def waiting(cls) -> Guard:
        """Anybody, as long as no attempt runs."""
        return cls("state <> 'running'", {})


#: A job that was replaced by a canvas and waits for the part of it that carries its id.
AWAITING = Guard(f"state = 'scheduled' AND available_at = '{NEVER}'", {})


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: its state, and what is told about it. `result` and `children` are JSON text."""

    state: JobState
    result: str | None = None
    children: str | None = None
    error: str | None = None
    traceback: str | None = None

    def values(self) -> dict[str, Any]:
        """Return the statement's parameters; text that Postgres cannot hold is made harmless."""
        return {
            "state": self.state.value, "result": self.result, "children": self.children,
            "error": _storable(self.error), "traceback": _storable(self.traceback),
        }  # fmt: skip


def _storable(text: str | None) -> str | None:
    return text and text.replace("\0", "\ufffd").encode(errors="replace").decode()


def finish(conn: psycopg.Connection[Any], job_id: str, guard: Guard, outcome: Outcome) -> bool:
    """Move the job to history with its outcome; tell whether the guard held. The caller commits."""
    return first_row(conn, _FINISH.format(guard=guard.sql), {"id": job_id, **guard.values, **outcome.values()}) is not None


def record(conn: psycopg.Connection[Any], job_id: str, task: str, outcome: Outcome) -> bool:
    """Write the outcome of something that never was a job of its own; tell whether it is news."""
    values = {"id": job_id, "task": task, **outcome.values()}
    return conn.execute(_RECORD, values).fetchone() is not None


def retry(
    conn: psycopg.Connection[Any], guard: Guard, successor: NewJob, *, error: str | None = None, replaced: bool = False
) -> bool:
    """Give the running job its next message and put it off until that is due; tell whether the guard held.

    A job that was `replaced` has begun in time and expires no more.
    """
    sql = _BACK.format(
        state=f"CASE WHEN {_DUE} > clock_timestamp() THEN 'scheduled' ELSE 'queued' END",
        available_at=_DUE,
        also=", message = %(message)s::json, args = %(args)s, kwargs = %(kwargs)s, task = %(task)s, queue = %(queue)s, "
        "priority = %(priority)s, gate = %(gate)s" + (", expires_at = NULL" if replaced else ""),
        guard=guard.sql,
    )
    values = {
        "id": successor.id, "task": successor.task, "queue": successor.queue, "priority": successor.priority,
        "message": encode(successor.message).decode(), "args": _storable(successor.args), "kwargs": _storable(successor.kwargs),
        "gate": successor.gate, "at": successor.available_at, "delay_s": successor.delay_s,
        "outcome": "retry", "error": _storable(error), "traceback": None, **guard.values,
    }  # fmt: skip
    return conn.execute(sql, values).fetchone() is not None


_DUE = "coalesce(%(at)s::timestamptz, clock_timestamp() + %(delay_s)s::float8 * interval '1 second')"


def give_back(
    conn: psycopg.Connection[Any], job_id: str, guard: Guard, outcome: str, *, error: str, crashed: bool = False
) -> bool:
    """Queue the running job again, due at once, and note how the attempt ended; tell whether the guard held."""
    sql = _BACK.format(
        state="'queued'",
        available_at="clock_timestamp()",
        also=", crashes = crashes + 1" if crashed else "",
        guard=guard.sql,
    )
    values = {"id": job_id, "outcome": outcome, "error": _storable(error), "traceback": None, **guard.values}
    return conn.execute(sql, values).fetchone() is not None


def snooze(conn: psycopg.Connection[Any], job_id: str, guard: Guard, delay_s: float, *, error: str) -> bool:
    """Put the running job off for so many seconds, as if it had not been tried; tell whether the guard held."""
    values = {"id": job_id, "delay_s": delay_s, "error": _storable(error), **guard.values}
    return conn.execute(_SNOOZE.format(guard=guard.sql), values).fetchone() is not None


def await_replacement(conn: psycopg.Connection[Any], job_id: str, guard: Guard) -> bool:
    """Put the job off until the canvas that replaced it sends its last part under the same id; tell whether the guard held."""
    # What time there was for it to begin has been kept: it began.
    sql = _BACK.format(state="'scheduled'", available_at=f"'{NEVER}'", also=", expires_at = NULL", guard=guard.sql)
    values = {"id": job_id, "outcome": "replaced", "error": None, "traceback": None, **guard.values}
    return conn.execute(sql, values).fetchone() is not None
