"""Claiming a job: the one statement that makes an attempt its owner."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

from worker.db import first_row, repeatable

#: The attempt is counted here, before it runs. The commit is not waited for on disk: a claim that a crash of Postgres forgets
#: leaves the job queued under another token, so the attempt that lost it cannot settle, and the job runs again.
#: The second branch makes a repeat after a lost answer find its own claim.
_CLAIM = """
UPDATE jobs SET state = 'running', attempt = attempt + (state = 'queued')::int, claim_token = %(token)s, worker_id = %(worker)s,
       delivery_tag = %(tag)s, claimed_at = clock_timestamp(), started_at = coalesce(started_at, clock_timestamp())
 WHERE id = %(id)s
   AND (state = 'queued' AND revision = %(revision)s AND NOT cancel_requested
        AND (expires_at IS NULL OR expires_at > clock_timestamp())
        AND NOT EXISTS (SELECT FROM queues WHERE queues.name = jobs.queue AND queues.paused)
        OR state = 'running' AND claim_token = %(token)s)
   AND set_config('synchronous_commit', 'off', true) = 'off'
RETURNING attempt, max_attempts, CASE WHEN expires_at < '9999-01-01' THEN expires_at END
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a job and to end it, for as long as the row carries the token."""

    job_id: str
    token: UUID
    attempt: int
    max_attempts: int | None
    #: None also for a moment beyond what Python can tell.
    expires_at: datetime | None


def try_claim(job_id: str, revision: int, *, token: UUID, worker_id: UUID, delivery_tag: str) -> Claim | None:
    """Claim a queued job under a fresh token, or return None: it runs elsewhere, ended, is paused, expired or was sent anew.

    Raises `LedgerUnavailable` when Postgres is away; the job then stays queued and is sent again.
    """
    return repeatable(lambda conn: claim(conn, job_id, revision, token=token, worker_id=worker_id, delivery_tag=delivery_tag))


def claim(
    conn: psycopg.Connection[Any], job_id: str, revision: int, *, token: UUID, worker_id: UUID, delivery_tag: str
) -> Claim | None:
    """Claim on this connection, as `try_claim`."""
    values = {"id": job_id, "revision": revision, "token": token, "worker": worker_id, "tag": delivery_tag}
    row = first_row(conn, _CLAIM, values)
    return Claim(job_id, token, *row) if row else None
