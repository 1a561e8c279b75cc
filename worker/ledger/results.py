"""What is known of jobs, living or past, for those who ask for their results."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from worker.cache import Region
from worker.states import JobState
from worker.store import keys

#: How jobs stand that have no result in Redis, as the text that Celery's clients read. However many ask for one job, Postgres is
#: asked once a second; what its attempt tells, and its end, is there at once. Without a limit of size, as the results are, and
#: tried again a second after an outage of Postgres, during which each who asks looks for himself.
status = Region("status", ttl=1.0, type=bytes, negative_ttl=1.0, max_bytes=2**29, max_back_off=1.0)

#: How each state is called by Celery.
CELERY_STATUS = {
    JobState.SCHEDULED: "PENDING", JobState.QUEUED: "PENDING", JobState.RUNNING: "STARTED", JobState.SUCCEEDED: "SUCCESS",
    JobState.FAILED: "FAILURE", JobState.DISCARDED: "FAILURE", JobState.CANCELLED: "REVOKED", JobState.EXPIRED: "REVOKED",
}  # fmt: skip

#: A replayed job is in both tables: its life counts before its past.
_READ = """
SELECT id, state, NULL::json AS result, NULL::json AS children, error, NULL AS traceback, progress, attempt, group_id, parent_id,
       NULL::timestamptz AS finished_at
  FROM jobs WHERE id = ANY(%(ids)s)
UNION ALL
(SELECT DISTINCT ON (id) id, state, result, children, error, traceback, progress, attempt, group_id, parent_id, finished_at
   FROM job_history h WHERE id = ANY(%(ids)s) AND NOT EXISTS (SELECT FROM jobs WHERE jobs.id = h.id)
  ORDER BY id, finished_at DESC)
"""
_FORGET = "UPDATE job_history SET result = NULL, children = NULL WHERE id = %s"

#: A job that is about to be ended from outside its attempt.
LOCK = "SELECT message, claim_token FROM jobs WHERE id = %(id)s AND {guard} FOR UPDATE"
CRASHES = "SELECT crashes, attempt, max_attempts, claim_token FROM jobs WHERE id = %(id)s AND {guard}"


@dataclass(frozen=True, slots=True)
class Row:
    """A job as its result is told from."""

    id: str
    state: JobState
    result: Any
    children: Any
    error: str | None
    traceback: str | None
    progress: Any
    attempt: int
    group_id: str | None
    parent_id: str | None
    finished_at: datetime | None


def read(conn: psycopg.Connection[Any], job_ids: list[str]) -> list[Row]:
    """Return what is known of these jobs; unknown ids are left out."""
    rows = conn.execute(_READ, {"ids": job_ids}).fetchall()
    return [Row(row[0], JobState(row[1]), *row[2:]) for row in rows]


def renewing(job_id: str) -> list[tuple[Any, ...]]:
    """Return the commands that let `status` be read anew, without scripts: for those who do not wait for the answer."""
    key = status.key(job_id)
    entry = keys.cache_entry(key)
    return [("DEL", entry, keys.cache_lease(key)), ("PUBLISH", entry, "d")]


def forget(conn: psycopg.Connection[Any], job_id: str) -> None:
    """Forget the result of an ended job; that it ran stays on record."""
    conn.execute(_FORGET, (job_id,))
