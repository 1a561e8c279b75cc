"""Accepting jobs from a file: in bulk, under ids that follow from the file, so that nothing is accepted twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg

from worker import faults
from worker.db import statement
from worker.errors import IdempotencyConflict, InvalidJob
from worker.ledger.accept import accept_rows, copy_rows
from worker.ledger.lines import gate_of
from worker.ledger.message import NewJob
from worker.ledger.publish import Sendable, epochs_for, publish

#: Held by whoever imports the next lines of a file, so that two imports of it take turns and the later one sees what is there.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
#: The past is looked at only as far back as this import, or an earlier one of the same file, may have left something in it.
_KNOWN = """
SELECT id FROM jobs WHERE id = ANY(%(ids)s)
UNION ALL
SELECT id FROM job_history WHERE id = ANY(%(ids)s) AND finished_at >= %(since)s
"""
_NOW = "SELECT clock_timestamp()"


@dataclass(slots=True)
class Imported:
    """What became of some jobs: how many were accepted, how many were known before, and which were refused why, by id."""

    accepted: int = 0
    known: int = 0
    refused: dict[str, InvalidJob | IdempotencyConflict] = field(default_factory=dict)


def moment() -> datetime:
    """Return the present moment of Postgres."""
    with statement() as conn:
        row = conn.execute(_NOW).fetchone()
    assert row is not None
    found: datetime = row[0]
    return found


def known_of(ids: Sequence[str], since: datetime) -> set[str]:
    """Return which of these jobs there are, living, or of the past and finished since then."""
    with statement() as conn:
        return _known(conn, ids, since)


def _known(conn: psycopg.Connection[Any], ids: Sequence[str], since: datetime) -> set[str]:
    return {row[0] for row in conn.execute(_KNOWN, {"ids": list(ids), "since": since}).fetchall()}


def import_jobs(jobs: Sequence[NewJob], name: str, since: datetime) -> Imported:
    """Make durable those of the jobs that are not known since then, in one transaction, and publish what the windows hold.

    `name` is the same for all imports of one file. A job that cannot be stored is refused and does not keep the others.
    Raises `LedgerUnavailable`; then none of them was accepted.
    """
    outcome = Imported()
    sound = _with_gates(jobs, outcome)
    epochs = dict(zip((job.id for job in sound), epochs_for([job.queue for job in sound]), strict=True)) if sound else {}
    with statement() as conn, conn.transaction():
        conn.execute(_LOCK, (name,))
        known = _known(conn, [job.id for job in sound], since)
        outcome.known += len(known)
        sendables = _write(conn, [job for job in sound if job.id not in known], epochs, outcome)
        faults.point(faults.AFTER_INSERT)
    faults.point(faults.AFTER_COMMIT)
    publish(sendables)
    return outcome


def _with_gates(jobs: Sequence[NewJob], outcome: Imported) -> list[NewJob]:
    sound = []
    for job in jobs:
        try:
            job.gate = gate_of(job)
            sound.append(job)
        except InvalidJob as exc:
            outcome.refused[job.id] = exc
    return sound


def _write(
    conn: psycopg.Connection[Any], jobs: Sequence[NewJob], epochs: dict[str, str | None], outcome: Imported
) -> list[Sendable]:
    plain = [job for job in jobs if _is_plain(job)]
    sendables: list[Sendable] = []
    try:
        with conn.transaction():
            sendables += copy_rows(conn, plain, [epochs[job.id] for job in plain])
        outcome.accepted += len(plain)
    except (psycopg.DataError, psycopg.errors.ProgramLimitExceeded):  # One of them: each by itself shows which.
        plain = []
    by_copy = {job.id for job in plain}
    for job in jobs:
        if job.id not in by_copy:
            sendables += _write_one(conn, job, epochs[job.id], outcome)
    return sendables


def _is_plain(job: NewJob) -> bool:
    """Tell whether a job goes by COPY, which knows no conditions and no arithmetic."""
    given = (job.idempotency_key, job.unique_key, job.available_at, job.expires_at, job.expires_s)
    return all(value is None for value in given) and not job.delay_s


def _write_one(conn: psycopg.Connection[Any], job: NewJob, epoch: str | None, outcome: Imported) -> list[Sendable]:
    try:
        with conn.transaction():
            [(job_id, sendable)] = accept_rows(conn, [job], [epoch])
    except (InvalidJob, IdempotencyConflict) as exc:
        outcome.refused[job.id] = exc
        return []
    if job_id == job.id:
        outcome.accepted += 1
    else:
        outcome.known += 1
    return [sendable] if sendable else []
