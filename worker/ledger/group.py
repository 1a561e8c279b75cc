"""Accepting what several callers hand in at the same moment in one transaction, so that they share its commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from worker import faults
from worker.db import repeatable
from worker.errors import IdempotencyConflict, InvalidJob, KeyInFlight, LedgerUnavailable
from worker.ledger.accept import accept_rows, copy_rows, insert_rows, is_copyable, payload_hash
from worker.ledger.lines import gate_of
from worker.ledger.message import NewJob
from worker.ledger.publish import Sendable, epochs_for, publish
from worker.settings import settings

#: In the order of the keys, so that two transactions with some of the same ones do not wait for each other in a circle.
TAKE_KEYS = """
INSERT INTO job_keys AS k (caller, key, payload_hash, job_id, expires_at)
SELECT caller, key, payload_hash, job_id, clock_timestamp() + %(ttl)s * interval '1 second'
  FROM unnest(%(callers)s::text[], %(keys)s::text[], %(hashes)s::bytea[], %(ids)s::text[])
    AS given (caller, key, payload_hash, job_id) ORDER BY caller COLLATE "C", key COLLATE "C"
ON CONFLICT (caller, key) DO UPDATE
   SET payload_hash = excluded.payload_hash, job_id = excluded.job_id, expires_at = excluded.expires_at,
       created_at = clock_timestamp()
 WHERE k.expires_at < clock_timestamp()
RETURNING job_id
"""
KEY_HOLDERS = """
SELECT k.caller, k.key, k.payload_hash, k.job_id
  FROM job_keys k JOIN unnest(%(callers)s::text[], %(keys)s::text[]) AS asked (caller, key)
    ON k.caller = asked.caller AND k.key = asked.key
"""

#: How long jobs wait together for a key that another's open transaction holds, and then each by itself: none may hold up the
#: others, nor those behind them, until somebody commits.
_TOGETHER, _ALONE = ("SET LOCAL lock_timeout = '1s'", "SET LOCAL lock_timeout = '100ms'")

#: Jobs from which on a COPY, with a question for the time before it, costs less than inserts.
_COPIED = 4

Outcome = str | Exception
_Written = tuple[Outcome, Sendable | None]


def accept_group(jobs: Sequence[NewJob], committed: Callable[[list[Outcome]], None]) -> None:
    """Make jobs durable that have nothing to do with one another, and publish them.

    `committed` is told once, after the last commit and before anything is published: for each job the id under which it is known,
    or the error for which it was not accepted, which is `LedgerUnavailable` when Postgres is away.
    """
    outcomes: list[Outcome] = [""] * len(jobs)
    sendables: list[Sendable] = []
    try:
        waves = _waves(jobs, outcomes)
    except LedgerUnavailable as exc:
        committed([exc] * len(jobs))
        return
    for wave in waves:
        for index, (outcome, sendable) in zip(wave, _accept_wave([jobs[index] for index in wave]), strict=True):
            outcomes[index] = outcome
            if sendable is not None:
                sendables.append(sendable)
    faults.point(faults.AFTER_COMMIT)
    committed(outcomes)
    publish(sendables)


def _waves(jobs: Sequence[NewJob], outcomes: list[Outcome]) -> list[list[int]]:
    """Split jobs so that no key is in a wave twice: who comes second must find the first one's job. Sets their gates.

    Raises `LedgerUnavailable` when it cannot be known what they are limited by.
    """
    waves: list[list[int]] = []
    seen: dict[tuple[str, str], int] = {}
    for index, job in enumerate(jobs):
        try:
            job.gate = gate_of(job)
        except InvalidJob as exc:
            outcomes[index] = exc
            continue
        number = 0
        if job.idempotency_key is not None:
            name = (job.caller or "", job.idempotency_key)
            number = seen[name] = seen.get(name, -1) + 1
        if number == len(waves):
            waves.append([])
        waves[number].append(index)
    return waves


def _accept_wave(jobs: list[NewJob]) -> list[_Written]:
    epochs = epochs_for([job.queue for job in jobs])
    try:
        return repeatable(lambda conn: _write(conn, jobs, epochs))
    except (InvalidJob, psycopg.errors.LockNotAvailable):  # One of them, and Postgres does not say which; none is there.
        return [_accept_alone(job, epoch) for job, epoch in zip(jobs, epochs, strict=True)]
    except LedgerUnavailable as exc:
        return [(exc, None)] * len(jobs)


def _accept_alone(job: NewJob, epoch: str | None) -> _Written:
    try:
        return repeatable(lambda conn: _write(conn, [job], [epoch], _ALONE))[0]
    except psycopg.errors.LockNotAvailable:
        return KeyInFlight(field="unique" if job.idempotency_key is None else "idempotency_key"), None
    except (InvalidJob, LedgerUnavailable) as exc:
        return exc, None


def _write(
    conn: psycopg.Connection[Any], jobs: list[NewJob], epochs: Sequence[str | None], patience: str = _TOGETHER
) -> list[_Written]:
    with conn.transaction():
        if any(job.idempotency_key or job.unique_key for job in jobs):
            conn.execute(patience)
        known = _take_keys(conn, [job for job in jobs if job.idempotency_key is not None and job.unique_key is None])
        written: dict[str, _Written] = {job_id: (outcome, None) for job_id, outcome in known.items()}
        pairs = [(job, epoch) for job, epoch in zip(jobs, epochs, strict=True) if job.id not in known]
        simple = [(job, epoch) for job, epoch in pairs if is_copyable(job)] if len(pairs) >= _COPIED else []
        if simple:
            written |= _copy(conn, [job for job, _ in simple], [epoch for _, epoch in simple])
        plain = [(job, epoch) for job, epoch in pairs if job.unique_key is None and job.id not in written]
        if plain:
            rows = insert_rows(conn, [job for job, _ in plain], [epoch for _, epoch in plain])
            written.update({job_id: (job_id, sendable) for job_id, sendable in rows})
        for job, epoch in pairs:
            if job.unique_key is not None:
                written[job.id] = _write_unique(conn, job, epoch)
    return [written[job.id] for job in jobs]


def _copy(conn: psycopg.Connection[Any], jobs: list[NewJob], epochs: list[str | None]) -> dict[str, _Written]:
    try:
        sendables = {sendable.id: sendable for sendable in copy_rows(conn, jobs, epochs)}
    # One that is there already was written by a first try, whose commit nobody heard of.
    except (psycopg.DataError, psycopg.errors.UniqueViolation) as exc:
        raise InvalidJob(f"one of {len(jobs)} jobs cannot be stored: {str(exc).splitlines()[0]}") from exc
    return {job.id: (job.id, sendables.get(job.id)) for job in jobs}


def _write_unique(conn: psycopg.Connection[Any], job: NewJob, epoch: str | None) -> _Written:
    try:
        with conn.transaction():
            return accept_rows(conn, [job], [epoch])[0]
    except (InvalidJob, IdempotencyConflict) as exc:
        return exc, None


def _take_keys(conn: psycopg.Connection[Any], jobs: Sequence[NewJob]) -> dict[str, Outcome]:
    """Take idempotency keys; return, by the id of a job whose key was taken before, what it is known as, or the conflict."""
    if not jobs:
        return {}
    hashes = {job.id: payload_hash(job) for job in jobs}
    asked = {"callers": [job.caller or "" for job in jobs], "keys": [job.idempotency_key for job in jobs]}
    given = {**asked, "ids": list(hashes), "hashes": list(hashes.values()), "ttl": settings().idempotency_ttl_s}
    taken = {row[0] for row in conn.execute(TAKE_KEYS, given).fetchall()}
    if len(taken) == len(jobs):
        return {}
    holders = {(row[0], row[1]): (bytes(row[2]), row[3]) for row in conn.execute(KEY_HOLDERS, asked).fetchall()}
    left = [job for job in jobs if job.id not in taken]
    return {job.id: _outcome(job, hashes[job.id], holders[job.caller or "", job.idempotency_key or ""]) for job in left}


def _outcome(job: NewJob, digest: bytes, holder: tuple[bytes, str]) -> Outcome:
    if holder[0] == digest:
        return holder[1]
    return IdempotencyConflict(
        f"idempotency key {job.idempotency_key!r} was used for job {holder[1]} with another payload", job_id=holder[1]
    )


