"""Accepting what a stream delivers, perhaps more than once: a batch in one transaction, each entry one job for ever.

The id of a job stands for its entry. It is looked for among the living and the past under a lock, so that of two consumers with
the same entry the later one finds what the earlier one has committed, also when that has ended by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from worker import faults
from worker.db import statement
from worker.errors import HoldfastError, IdempotencyConflict
from worker.ledger.accept import GIVE_KEY, copy_rows, payload_hash, write_row
from worker.ledger.group import KEY_HOLDERS, TAKE_KEYS
from worker.ledger.lines import gate_of
from worker.ledger.message import NewJob
from worker.ledger.publish import Sendable, epochs_for, publish
from worker.settings import settings

#: One consumer writes at a time. One that is paused meanwhile loses its session, and with it the lock.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('holdfast intake', 0))"
_NOT_FOR_LONG = "SET LOCAL idle_in_transaction_session_timeout = '5s'"

#: The caller under which the ids of entries are kept that have no job of their own: a name that nobody has.
_OURS = "\x7fintake"
#: No job has ended before its entry was appended: partitions of earlier days are left out. An hour for clocks that differ; an id
#: that its writer chose may lie in any future.
_KNOWN = f"""
SELECT id FROM jobs WHERE id = ANY(%(ids)s)
UNION ALL
SELECT id FROM job_history
 WHERE id = ANY(%(ids)s)
   AND finished_at > to_timestamp(least(%(since_ms)s::float8 / 1000, extract(epoch FROM now()))) - interval '1 hour'
UNION ALL
SELECT key FROM job_keys WHERE caller = '{_OURS}' AND key = ANY(%(ids)s)
"""
#: An entry for which another's job stands, by idempotency key or uniqueness: it is that one's also when the other is long over.
_STANDS = f"""
INSERT INTO job_keys (caller, key, payload_hash, job_id, expires_at)
VALUES ('{_OURS}', %s, '', %s, clock_timestamp() + %s * interval '1 day') ON CONFLICT (caller, key) DO NOTHING
"""


@dataclass
class Outcome:
    """What became of a batch: how many jobs are new, how many were known, and which could not be accepted, by id."""

    accepted: int = 0
    known: int = 0
    refused: dict[str, HoldfastError] = field(default_factory=dict)


def accept_entries(jobs: Sequence[NewJob], since_ms: int) -> Outcome:
    """Make the jobs of entries durable, those that are not yet, and publish them; `since_ms` is when the oldest was appended.

    Raises `LedgerUnavailable` when Postgres is away, and `InvalidJob` or an error of psycopg for a job that cannot be stored: in
    both cases nothing was accepted.
    """
    outcome = Outcome()
    for job in jobs:
        job.gate = gate_of(job)
    epochs = dict(zip((job.id for job in jobs), epochs_for([job.queue for job in jobs]), strict=True))
    with statement() as conn, conn.transaction():
        conn.execute(_NOT_FOR_LONG)
        conn.execute(_LOCK)
        news = _unknown(conn, jobs, since_ms)
        news = _with_their_keys(conn, news, outcome)
        sendables = _write(conn, news, epochs, outcome)
        faults.point(faults.AFTER_INSERT)
    faults.point(faults.AFTER_COMMIT)
    outcome.known = len(jobs) - outcome.accepted - len(outcome.refused)
    publish(sendables)
    return outcome


def _unknown(conn: psycopg.Connection[Any], jobs: Sequence[NewJob], since_ms: int) -> list[NewJob]:
    ids = [job.id for job in jobs]
    known = {row[0] for row in conn.execute(_KNOWN, {"ids": ids, "since_ms": since_ms}).fetchall()}
    news = [job for job in jobs if job.id not in known]
    for job in news:
        job.fresh = True  # it need not be looked for once more
    return news


def _with_their_keys(conn: psycopg.Connection[Any], jobs: list[NewJob], outcome: Outcome) -> list[NewJob]:
    """Return the jobs that have no idempotency key or are the first with it; those with another's payload are refused."""
    firsts: dict[tuple[str, str], NewJob] = {}
    for job in jobs:
        if job.idempotency_key is not None:
            firsts.setdefault((job.caller or "", job.idempotency_key), job)
    if not firsts:
        return jobs
    hashes = {job.id: payload_hash(job) for job in jobs if job.idempotency_key is not None}
    taken = _take_keys(conn, firsts, hashes)
    late = [job for job in jobs if job.idempotency_key is not None and job.id not in taken]
    if not late:
        return jobs
    pairs = _pairs([(job.caller or "", job.idempotency_key or "") for job in late])
    holders = {(row[0], row[1]): (bytes(row[2]), row[3]) for row in conn.execute(KEY_HOLDERS, pairs).fetchall()}
    left = []
    for job in jobs:
        if job.idempotency_key is None or job.id in taken:
            left.append(job)
            continue
        digest, holder = holders[job.caller or "", job.idempotency_key]
        if digest != hashes[job.id]:
            outcome.refused[job.id] = IdempotencyConflict(
                f"idempotency key {job.idempotency_key!r} was used for job {holder} with another payload", job_id=holder
            )
        elif holder == job.id:  # its row is gone with its history, or was never written: the key alone is no job
            left.append(job)
        else:
            conn.execute(_STANDS, (job.id, holder, settings().history_days))
    return left


def _take_keys(conn: psycopg.Connection[Any], firsts: dict[tuple[str, str], NewJob], hashes: dict[str, bytes]) -> set[str]:
    """Take the keys that are free for the first job with each; return the ids of those that got theirs."""
    ids = [job.id for job in firsts.values()]
    values = {"ids": ids, "hashes": [hashes[job_id] for job_id in ids], "ttl": settings().idempotency_ttl_s}
    return {row[0] for row in conn.execute(TAKE_KEYS, {**_pairs(list(firsts)), **values}).fetchall()}


def _pairs(keys: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    return {"callers": [caller for caller, _ in keys], "keys": [key for _, key in keys]}


def _write(
    conn: psycopg.Connection[Any], jobs: Sequence[NewJob], epochs: dict[str, str | None], outcome: Outcome
) -> list[Sendable]:
    """Write the rows: those that may start at once by COPY, and the others one by one. Return what is to be published."""
    simple = [job for job in jobs if _is_simple(job)]
    sendables = copy_rows(conn, simple, [epochs[job.id] for job in simple]) if simple else []
    outcome.accepted += len(simple)
    together = {job.id for job in simple}
    for job in jobs:
        if job.id in together:
            continue
        holder, sendable = write_row(conn, job, epochs[job.id])
        if holder == job.id:
            outcome.accepted += 1
        else:
            conn.execute(_STANDS, (job.id, holder, settings().history_days))
            if job.idempotency_key is not None:
                conn.execute(GIVE_KEY, (holder, job.caller or "", job.idempotency_key))
        if sendable:
            sendables.append(sendable)
    return sendables


def _is_simple(job: NewJob) -> bool:
    return job.immediate and job.unique_key is None and job.expires_at is None and job.expires_s is None
