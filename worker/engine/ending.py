"""The transaction in which a job ends: what Celery stores and sends meanwhile goes through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import psycopg

from worker.ledger.accept import Scope, accept_rows, scope
from worker.ledger.message import NewJob
from worker.ledger.publish import Sendable, epochs_for
from worker.ledger.settle import Guard
from worker.states import JobState


@dataclass
class Ending:
    """One such transaction; what it stored and sent is told once it has committed."""

    conn: psycopg.Connection[Any]
    job_id: str
    guard: Guard
    #: The state the job takes when Celery stores its outcome; None for what the Celery status says.
    state: JobState | None = None
    told: list[tuple[str, str]] = field(default_factory=list)
    sendables: list[Sendable] = field(default_factory=list)
    held: bool | None = None

    def accept(self, jobs: Sequence[NewJob]) -> list[str]:
        """Accept what ends with the job, such as its error callbacks, in the same transaction."""
        written = accept_rows(self.conn, jobs, epochs_for([job.queue for job in jobs]))
        self.sendables += [sendable for _, sendable in written if sendable]
        return [job_id for job_id, _ in written]


_ending: ContextVar[Ending | None] = ContextVar("holdfast_ending", default=None)


def current_ending() -> Ending | None:
    """Return the transaction in which this thread is ending a job, if any."""
    return _ending.get()


@contextmanager
def within(ending: Ending, where: Scope | None = None) -> Iterator[None]:
    """End a job in the block; what is enqueued in it is accepted there, or in the ending itself."""
    token = _ending.set(ending)
    try:
        with scope(where or ending):
            yield
    finally:
        _ending.reset(token)
