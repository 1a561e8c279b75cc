"""The run of one attempt: its claim, its session, and the transaction in which it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
from celery.exceptions import Ignore

from worker import faults
from worker.db import engine, is_away, raw, session, statement, translated
from worker.errors import ClaimLost, HoldfastError, LedgerUnavailable
from worker.ledger import settle
from worker.ledger.accept import accept, accept_rows, enter_scope, scope
from worker.ledger.claim import Claim
from worker.ledger.lines import gate_of
from worker.ledger.message import NewJob
from worker.ledger.publish import Sendable, epochs_for, publish
from worker.limits import Slot
from worker.locks import Held, Lease, keeper, release
from worker.telemetry import SETTLED, log

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

logger = log(__name__)


class Phase(Enum):
    """How far a run is: only what is enqueued while it settles joins its last transaction."""

    BODY = "body"
    SETTLING = "settling"
    OVER = "over"


class Snooze(Ignore):  # type: ignore[misc]
    """The body asks to be put off, as if it had not been tried."""

    def __init__(self, delay_s: float, why: str) -> None:
        super().__init__(delay_s, why)  # from which a prefork pool's parent makes it anew
        self.delay_s, self.why = delay_s, why


@dataclass
class Run:
    """One attempt at a job in this process. While it is current, it is the scope into which jobs are accepted."""

    claim: Claim
    #: Counts a death of the attempt: queues the job again, or discards one that has caused too many.
    crash: Callable[[str, settle.Guard, str], object]
    lease: Lease | None = None
    #: What it holds of limits on how many run at the same time.
    slot: Slot | None = None
    #: The lock its task declares, where that is one of Redis.
    lock: Held | None = None
    phase: Phase = Phase.BODY
    progressed_at: float = 0.0
    #: The message the job goes on with: a retry, or a task that replaced it.
    successor: NewJob | None = None
    #: Whether the task replaced itself by a canvas.
    replaced: bool = False
    #: The Celery state and meta the task set for itself before it raised Ignore.
    manual: tuple[str, Any] | None = None
    _session: Session | None = None
    _sendables: list[Sendable] = field(default_factory=list)
    _after: list[Callable[[], None]] = field(default_factory=list)

    @property
    def guard(self) -> settle.Guard:
        """What makes this attempt the job's owner."""
        return settle.Guard.token(self.claim.token)

    @property
    def session(self) -> Session:
        """The session whose transaction commits together with the job's end."""
        if self._session is None:
            from sqlalchemy import event

            self._session = session()
            event.listen(self._session, "before_commit", self._only_at_the_end)
        return self._session

    def _only_at_the_end(self, of: Session) -> None:
        if self.phase is not Phase.SETTLING and not of.in_nested_transaction():
            raise HoldfastError("self.session commits with the job's end, so that both happen once: flush() it, do not commit()")

    def goes_on_with(self, job: NewJob) -> bool:
        """Take in the job's own next message, of a retry or a replacement; tell whether it is that. Raises as `accept`."""
        if job.id != self.claim.job_id or self.phase is Phase.OVER:
            return False
        job.gate = gate_of(job)
        self.successor = job
        return True

    def accept(self, jobs: Sequence[NewJob]) -> list[str]:
        """Accept what the task enqueues: at once, or, while it settles, with the transaction that ends it."""
        if self.phase is not Phase.SETTLING:
            with scope(None):
                return accept(jobs)
        epochs = epochs_for([job.queue for job in jobs])
        with translated():
            written = accept_rows(raw(self.session), jobs, epochs)
        self._sendables += [sendable for _, sendable in written if sendable]
        return [job_id for job_id, _ in written]

    @contextmanager
    def settling(self, outcome: str) -> Iterator[psycopg.Connection[Any]]:
        """Lend the connection on which the attempt ends; commit what was done on it, then publish what was enqueued.

        Where nothing else joins, the ending statement is its own transaction and costs one round trip. Raises `ClaimLost` (with
        everything rolled back) when the body says so, `LedgerUnavailable` when the commit could not be made; the job is then
        given back as soon as Postgres answers, unless the commit was made after all. One whose connection failed it counts as a
        crash, so that a job that breaks its connection each time comes to an end.
        """
        self.phase, conn = Phase.SETTLING, None
        try:
            if self._session is None and not self._sendables:
                with statement() as conn:
                    yield conn
            else:
                with translated():
                    conn = raw(self.session)
                    self.session.flush()
                    yield conn
                    self.session.commit()
        except ClaimLost:
            self.end()
            SETTLED.labels("claim lost").inc()
            raise
        except LedgerUnavailable as exc:
            self.end(cut_off=True)
            self.give_back(f"Postgres went away when it ended: {exc}", crashed=conn is not None and is_away(exc))
            raise
        SETTLED.labels(outcome).inc()
        self._close(gone=outcome in ("succeeded", "failed") and self.successor is None)
        faults.point(faults.AFTER_SETTLE)
        publish(self._sendables)
        for tell in self._after:
            tell()

    def connection(self) -> psycopg.Connection[Any]:
        """Return the connection of the transaction that ends the attempt."""
        return raw(self.session)

    def after_commit(self, tell: Callable[[], None]) -> None:
        """Do this once the attempt's end has committed."""
        self._after.append(tell)

    def begin(self) -> None:
        """Let what is enqueued from now on join the transaction that ends the attempt."""
        self.phase = Phase.SETTLING

    def undo(self) -> None:
        """Undo what the attempt wrote, not what it is to go on with."""
        if self._session is not None:
            self._session.rollback()

    def roll_back(self) -> None:
        """Undo everything the attempt wrote; it can still end in another way."""
        self.undo()
        self._sendables.clear()
        self._after.clear()
        self.successor = None

    def end(self, *, cut_off: bool = False) -> None:
        """End the run in this process without settling it: what it wrote and enqueued is rolled back.

        One that was `cut_off` takes the connections of this process along: after a failover others, too, may be left behind with
        a server that only reads.
        """
        if cut_off and self._session is not None:
            self._session.invalidate()
            engine().dispose()
        self._close()
        self._sendables.clear()

    def give_back(self, why: str, *, crashed: bool) -> None:
        """Queue the job again as soon as Postgres answers; an attempt that `crashed` is counted."""
        returns.add(partial(self.crash if crashed else _give_back, self.claim.job_id, self.guard, why))

    def _close(self, *, gone: bool = False) -> None:
        self.phase = Phase.OVER
        if self.slot is not None:
            self.slot.give_back()
        if self.lock is not None:
            self.lock.release()
        if self.lease is not None and gone:
            keeper().drop(self.lease)  # nobody waits for the lock of a job that has ended
        elif self.lease is not None:
            keeper().remove(self.lease)
            release(self.lease.key, self.lease.token)
        if self._session is not None:
            # Closing rolls back what was not committed; a dead connection has nothing left to roll back.
            try:
                self._session.close()
            except Exception as exc:
                logger.warning("a session could not be closed", error=repr(exc))


_current: ContextVar[Run | None] = ContextVar("holdfast_run", default=None)


def current() -> Run | None:
    """Return the run this thread is in, if any."""
    return _current.get()


def enter(run: Run) -> None:
    """Make the run this thread's, until `leave`: the tracer ends it after the task's own call has returned."""
    _current.set(run)
    enter_scope(run)


def leave() -> None:
    """Forget this thread's run."""
    _current.set(None)
    enter_scope(None)


def _give_back(job_id: str, guard: settle.Guard, why: str) -> None:
    with statement() as conn:
        settle.give_back(conn, job_id, guard, "handed back", error=why)


class Returns:
    """Attempts whose end could not be written because Postgres was away; given back by a thread once it answers."""

    def __init__(self) -> None:
        self._left: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    def add(self, give_back: Callable[[], object]) -> None:
        """Do this as soon as it can be done; it raises `LedgerUnavailable` when it is too early."""
        with self._lock:
            self._left.append(give_back)
            if len(self._left) == 1:
                threading.Thread(target=self._work, name="holdfast-returns", daemon=True).start()

    def _work(self) -> None:
        pause = threading.Event()
        while True:
            with self._lock:
                if not self._left:
                    return
                give_back = self._left[0]
            try:
                give_back()
            except LedgerUnavailable:
                pause.wait(0.5)
                continue
            except Exception:  # The job is found by its node's look for lost ones; those behind it must not wait for that.
                logger.exception("an attempt could not be given back")
            with self._lock:
                self._left.pop(0)


returns = Returns()
