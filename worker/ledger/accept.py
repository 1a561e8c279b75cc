"""Accepting jobs: each becomes a row, in a transaction of its own or in the caller's, and is published after the commit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import psycopg

from worker import faults
from worker.db import first_row, raw, repeatable, statement, translated
from worker.errors import IdempotencyConflict, InvalidJob
from worker.ledger.canonical import digest
from worker.ledger.lines import gate_of
from worker.ledger.message import NewJob, encode
from worker.ledger.publish import Sendable, epochs_for, publish
from worker.settings import settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, SessionTransaction

#: An accept that finds the id taken by a living job that waits for its replacement fills that row instead.
_INSERT = """
INSERT INTO jobs (id, task, queue, priority, state, message, args, kwargs, available_at, expires_at, max_attempts, caller,
                  idempotency_key, parent_id, root_id, group_id, unique_key, unique_until, gate,
                  callback_url, metadata, dispatch_epoch, dispatched_at)
SELECT %(id)s::text, %(task)s::text, %(queue)s::text, %(priority)s::int2,
       CASE WHEN due.at > clock_timestamp() THEN 'scheduled' ELSE 'queued' END,
       %(message)s::json, %(args)s::text, %(kwargs)s::text, due.at,
       coalesce(%(expires_at)s::timestamptz, clock_timestamp() + %(expires_s)s::float8 * interval '1 second'),
       %(max_attempts)s::int4, %(caller)s::text, %(idempotency_key)s::text,
       %(parent_id)s::text, %(root_id)s::text, %(group_id)s::text,
       %(unique_key)s::text, clock_timestamp() + %(unique_for_s)s::float8 * interval '1 second', %(gate)s::text,
       %(callback_url)s::text, %(metadata)s::jsonb,
       CASE WHEN due.at > clock_timestamp() THEN NULL ELSE %(epoch)s::text END,
       CASE WHEN due.at > clock_timestamp() OR %(epoch)s::text IS NULL THEN NULL ELSE clock_timestamp() END
FROM (SELECT greatest('2000-01-01', coalesce(%(available_at)s::timestamptz,
                                             clock_timestamp() + %(delay_s)s::float8 * interval '1 second')) AS at
      OFFSET 0) AS due
WHERE {unless}
ON CONFLICT (id) DO UPDATE
   SET task = excluded.task, queue = excluded.queue, priority = excluded.priority, state = excluded.state,
       message = excluded.message, args = excluded.args, kwargs = excluded.kwargs, available_at = excluded.available_at,
       expires_at = excluded.expires_at, gate = excluded.gate,
       callback_url = coalesce(excluded.callback_url, jobs.callback_url), metadata = coalesce(excluded.metadata, jobs.metadata),
       revision = jobs.revision + 1,
       dispatch_epoch = excluded.dispatch_epoch, dispatched_at = excluded.dispatched_at
 WHERE jobs.state = 'scheduled' AND jobs.available_at = '9000-01-01 00:00+00'
RETURNING revision, (extract(epoch FROM dispatched_at) * 1000)::int8
"""

#: An id that was made just now is not looked for in the past, which would cost something for each day of it.
_ACCEPT_FRESH = _INSERT.format(unless="true")
_ACCEPT = _INSERT.format(unless="NOT EXISTS (SELECT FROM job_history WHERE id = %(id)s::text)")

_FORGET_UNIQUE = "UPDATE jobs SET unique_key = NULL WHERE unique_key = %s AND unique_until < clock_timestamp()"
_UNIQUE_HOLDER = "SELECT id FROM jobs WHERE unique_key = %s"
#: Times an insert is tried while the job that holds the unique key ends under it each time.
_UNIQUE_TRIES = 10

_TAKE_KEY = """
INSERT INTO job_keys AS k (caller, key, payload_hash, job_id, expires_at)
VALUES (%(caller)s, %(key)s, %(hash)s, %(id)s, clock_timestamp() + %(ttl)s * interval '1 second')
ON CONFLICT (caller, key) DO UPDATE
   SET payload_hash = excluded.payload_hash, job_id = excluded.job_id, expires_at = excluded.expires_at,
       created_at = clock_timestamp()
 WHERE k.expires_at < clock_timestamp()
RETURNING job_id
"""
_KEY_HOLDER = "SELECT payload_hash, job_id FROM job_keys WHERE caller = %s AND key = %s"
GIVE_KEY = "UPDATE job_keys SET job_id = %s WHERE caller = %s AND key = %s"

_COPY = """
COPY jobs (id, task, queue, priority, state, message, args, kwargs, available_at, max_attempts, caller,
           idempotency_key, root_id, gate, callback_url, metadata, dispatch_epoch, dispatched_at)
FROM STDIN
"""


class Scope(Protocol):
    """Where accepted jobs go while it is entered."""

    def accept(self, jobs: Sequence[NewJob]) -> list[str]:
        """Write the rows and return the ids under which the jobs are known, in order."""


_scope: ContextVar[Scope | None] = ContextVar("holdfast_scope", default=None)


@contextmanager
def scope(where: Scope | None) -> Iterator[None]:
    """Accept jobs there for the length of the block."""
    token = _scope.set(where)
    try:
        yield
    finally:
        _scope.reset(token)


def current_scope() -> Scope | None:
    """Return where this thread's jobs are accepted; None for transactions of their own."""
    return _scope.get()


def enter_scope(where: Scope | None) -> None:
    """Accept this thread's jobs there from now on; None for transactions of their own."""
    _scope.set(where)


def accept(jobs: Sequence[NewJob]) -> list[str]:
    """Make the jobs durable and return the ids under which they are known, in order.

    An id differs from the one given when the job is known already by its idempotency key or as the active one of its unique key.

    Outside a scope the call has its own transaction and returns after the commit; Redis being away changes nothing but that
    the relay sends the jobs later. Raises `LedgerUnavailable` when Postgres is away (then nothing was accepted), and
    `IdempotencyConflict`.
    """
    for job in jobs:
        job.gate = gate_of(job)
    where = _scope.get()
    if where is not None:
        return where.accept(jobs)
    epochs = epochs_for([job.queue for job in jobs])
    if len(jobs) == 1 and _is_plain(jobs[0]):
        sendable = repeatable(lambda conn: _insert(conn, jobs[0], epochs[0]))
        written = [(jobs[0].id, sendable)]
    else:
        written = repeatable(lambda conn: _transact(conn, jobs, epochs))
    faults.point(faults.AFTER_COMMIT)
    publish([sendable for _, sendable in written if sendable])
    return [job_id for job_id, _ in written]


def _is_plain(job: NewJob) -> bool:
    return job.idempotency_key is None and job.unique_key is None


def _transact(
    conn: psycopg.Connection[Any], jobs: Sequence[NewJob], epochs: Sequence[str | None]
) -> list[tuple[str, Sendable | None]]:
    with conn.transaction():
        return accept_rows(conn, jobs, epochs)


def accept_rows(
    conn: psycopg.Connection[Any], jobs: Sequence[NewJob], epochs: Sequence[str | None]
) -> list[tuple[str, Sendable | None]]:
    """Write the rows on the caller's connection, inside its transaction; `epochs` says for each whether it is sent after that.

    Returns for each job the id under which it is known and, if it is to be published after the commit, what to publish.
    """
    if len(jobs) > 1 and all(_is_plain(job) for job in jobs):
        return insert_rows(conn, jobs, epochs)
    return [_accept_row(conn, job, epoch) for job, epoch in zip(jobs, epochs, strict=True)]


def insert_rows(
    conn: psycopg.Connection[Any], jobs: Sequence[NewJob], epochs: Sequence[str | None]
) -> list[tuple[str, Sendable | None]]:
    """Write rows whose keys need no look, as `accept_rows`. Raises `InvalidJob` for one of them that cannot be stored."""
    cursor = conn.cursor()
    rows = [_parameters(job, epoch) for job, epoch in zip(jobs, epochs, strict=True)]
    try:
        cursor.executemany(_ACCEPT_FRESH if all(job.fresh for job in jobs) else _ACCEPT, rows, returning=True)
    except psycopg.DataError as exc:
        raise InvalidJob(f"one of {len(jobs)} jobs cannot be stored: {str(exc).splitlines()[0]}") from exc
    written: list[tuple[str, Sendable | None]] = []
    for job, epoch in zip(jobs, epochs, strict=True):
        written.append((job.id, _sendable(job, epoch, cursor.fetchone())))
        cursor.nextset()
    faults.point(faults.AFTER_INSERT)
    return written


def _accept_row(conn: psycopg.Connection[Any], job: NewJob, epoch: str | None) -> tuple[str, Sendable | None]:
    if job.idempotency_key is not None and (known := _known_by_key(conn, job)):
        return known, None
    holder, sendable = write_row(conn, job, epoch)
    if holder != job.id and job.idempotency_key is not None:
        conn.execute(GIVE_KEY, (holder, job.caller or "", job.idempotency_key))
    return holder, sendable


def write_row(conn: psycopg.Connection[Any], job: NewJob, epoch: str | None) -> tuple[str, Sendable | None]:
    """Write the row of a job whose idempotency key, if it has one, is taken; return as `accept_rows` does for each."""
    if job.unique_key is None:
        return job.id, _insert(conn, job, epoch)
    return _insert_unique(conn, job, epoch)


def _insert_unique(conn: psycopg.Connection[Any], job: NewJob, epoch: str | None) -> tuple[str, Sendable | None]:
    """Write the row unless another active job has its unique key; return the id of whichever it is, and what to publish."""
    conn.execute(_FORGET_UNIQUE, (job.unique_key,))
    for tries_left in reversed(range(_UNIQUE_TRIES)):
        try:
            with conn.transaction():
                return job.id, _insert(conn, job, epoch)
        except psycopg.errors.UniqueViolation:
            holder = conn.execute(_UNIQUE_HOLDER, (job.unique_key,)).fetchone()
            if holder:
                return str(holder[0]), None
            # It ended in this very moment, so the key is free; or the caller's snapshot is too old to show it.
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


def _known_by_key(conn: psycopg.Connection[Any], job: NewJob) -> str | None:
    """Take the job's idempotency key, or return the job it already stands for. Raises `IdempotencyConflict`."""
    caller, payload = job.caller or "", payload_hash(job)
    taken = conn.execute(
        _TAKE_KEY,
        {"caller": caller, "key": job.idempotency_key, "hash": payload, "id": job.id, "ttl": settings().idempotency_ttl_s},
    ).fetchone()
    if taken:
        return None
    row = conn.execute(_KEY_HOLDER, (caller, job.idempotency_key)).fetchone()
    assert row is not None, "a key that cannot be taken has a holder"
    if bytes(row[0]) != payload:
        raise IdempotencyConflict(
            f"idempotency key {job.idempotency_key!r} was used for job {row[1]} with another payload", job_id=row[1]
        )
    return str(row[1])


def payload_hash(job: NewJob) -> bytes:
    """Return the digest by which a repeated request is known: task and arguments, not the moment, the id or its links."""
    args, kwargs, _ = json.loads(job.message["body"])  # msgspec would refuse the NaN that Celery's JSON may hold
    return digest([job.task, args, kwargs])


def _insert(conn: psycopg.Connection[Any], job: NewJob, epoch: str | None) -> Sendable | None:
    try:
        row = first_row(conn, _ACCEPT_FRESH if job.fresh else _ACCEPT, _parameters(job, epoch))
    except (psycopg.DataError, psycopg.errors.ProgramLimitExceeded) as exc:
        raise InvalidJob(f"job {job.id} ({job.task}) cannot be stored: {str(exc).splitlines()[0]}") from exc
    faults.point(faults.AFTER_INSERT)
    return _sendable(job, epoch, row)


def _sendable(job: NewJob, epoch: str | None, row: tuple[int, int | None] | None) -> Sendable | None:
    if row is None or row[1] is None or epoch is None:
        return None
    return Sendable(job.id, job.queue, job.priority, row[0], job.message, epoch, row[1])


def _message_text(job: NewJob) -> str:
    try:
        return encode(job.message).decode()
    except (TypeError, ValueError) as exc:  # The body is text by now: what is left are headers and properties.
        raise InvalidJob(f"{job.task}: the headers cannot be written as JSON: {exc}") from exc


def _metadata_text(job: NewJob) -> str | None:
    return None if job.metadata is None else encode(job.metadata).decode()


def _parameters(job: NewJob, epoch: str | None) -> dict[str, Any]:
    return {
        "id": job.id, "task": job.task, "queue": job.queue, "priority": job.priority, "message": _message_text(job),
        "args": job.args.replace("\0", "\\0"), "kwargs": job.kwargs.replace("\0", "\\0"),
        "available_at": job.available_at, "delay_s": job.delay_s, "expires_at": job.expires_at, "expires_s": job.expires_s,
        "max_attempts": job.max_attempts, "caller": job.caller, "idempotency_key": job.idempotency_key,
        "parent_id": job.parent_id, "root_id": job.root_id, "group_id": job.group_id,
        "unique_key": job.unique_key, "unique_for_s": job.unique_for_s,
        "gate": job.gate, "callback_url": job.callback_url, "metadata": _metadata_text(job),
        "epoch": epoch if job.immediate and job.gate is None else None,
    }  # fmt: skip


def copy_jobs(jobs: Sequence[NewJob]) -> list[str]:
    """Make many fresh, immediate jobs durable by one COPY in a transaction of its own, and publish what the windows hold.

    All or none are accepted. Raises as `accept`.
    """
    for job in jobs:
        job.gate = gate_of(job)
    where = _scope.get()
    if where is not None:
        return where.accept(jobs)
    epochs = epochs_for([job.queue for job in jobs])
    with statement() as conn, conn.transaction():
        sendables = copy_rows(conn, jobs, epochs)
        faults.point(faults.AFTER_INSERT)
    faults.point(faults.AFTER_COMMIT)
    publish(sendables)
    return [job.id for job in jobs]


def copy_rows(conn: psycopg.Connection[Any], jobs: Sequence[NewJob], epochs: Sequence[str | None]) -> list[Sendable]:
    """Write immediate jobs that nothing else has the id of by one COPY, inside the caller's transaction.

    Returns what is to be published after the commit.
    """
    sendables: list[Sendable] = []
    row = conn.execute("SELECT now::text, (extract(epoch FROM now) * 1000)::int8 FROM clock_timestamp() AS now").fetchone()
    assert row is not None
    moment, sent_ms = row
    with conn.cursor().copy(_COPY) as copy:
        for job, epoch in zip(jobs, epochs, strict=True):
            epoch = None if job.gate else epoch
            if epoch:
                sendables.append(Sendable(job.id, job.queue, job.priority, 0, job.message, epoch, sent_ms))
            copy.write_row((
                job.id, job.task, job.queue, job.priority, "queued", _message_text(job), job.args, job.kwargs,
                moment, job.max_attempts, job.caller, job.idempotency_key, job.root_id,
                job.gate, job.callback_url, _metadata_text(job), epoch, moment if epoch else None,
            ))  # fmt: skip
    return sendables


def is_copyable(job: NewJob) -> bool:
    """Tell whether a job can go by COPY: it is due at once, and no key or time of it needs a look."""
    looks = (job.idempotency_key, job.unique_key, job.expires_at, job.expires_s)
    return job.fresh and job.immediate and looks == (None, None, None, None)


class SessionScope:
    """Accepts into a SQLAlchemy session's transaction and publishes once that has committed.

    A job belongs to the savepoint it was accepted in: it goes when that is rolled back, and waits for the commit of the whole.
    """

    _PENDING = "holdfast_pending"

    def __init__(self, session: Session) -> None:
        self.session = session
        if self._PENDING not in session.info:
            from sqlalchemy import event

            session.info[self._PENDING] = []
            event.listen(session, "after_commit", self._publish)
            event.listen(session, "after_soft_rollback", self._forget)

    def connection(self) -> psycopg.Connection[Any]:
        """Return the connection of the session's transaction."""
        with translated():
            return raw(self.session)

    def accept(self, jobs: Sequence[NewJob]) -> list[str]:
        """Write the rows in the session's transaction."""
        epochs = epochs_for([job.queue for job in jobs])
        with translated():
            written = accept_rows(raw(self.session), jobs, epochs)
        owner = self.session.get_nested_transaction() or self.session.get_transaction()
        self.session.info[self._PENDING] += [(owner, sendable) for _, sendable in written if sendable]
        return [job_id for job_id, _ in written]

    @classmethod
    def _publish(cls, session: Session) -> None:
        if session.in_nested_transaction():
            return
        pending, session.info[cls._PENDING] = session.info[cls._PENDING], []
        # Nobody tells of a session that is closed instead of rolled back: what that left is not of this transaction.
        jobs = [job for owner, job in pending if _is_within(owner, session.get_transaction())]
        if jobs:
            faults.point(faults.AFTER_COMMIT)
            publish(jobs)

    @classmethod
    def _forget(cls, session: Session, rolled_back: SessionTransaction) -> None:
        session.info[cls._PENDING] = [it for it in session.info[cls._PENDING] if not _is_within(it[0], rolled_back)]


def _is_within(inner: SessionTransaction | None, outer: SessionTransaction | None) -> bool:
    while inner is not None and inner is not outer:
        inner = inner.parent
    return inner is not None


@contextmanager
def enqueue_in(session: Session) -> Iterator[Session]:
    """Accept every job enqueued in the block in this session's transaction: it exists if and only if that commits.

        with Session(engine) as session, session.begin():
            session.add(order)
            with enqueue_in(session):
                send_receipt.delay(order.id)

    **Guarantee:** the row and the caller's own writes commit together or not at all; the job is published after the commit, and
    if the process dies before that, the relay sends it.
    """
    with scope(SessionScope(session)):
        yield session


