"""A lock in Postgres that lives and ends with a transaction: the one for correctness."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors as pg
from psycopg.pq import TransactionStatus

from worker.db import raw, session, translated
from worker.errors import InvalidLock, LockBusy, LockReentered
from worker.locks.names import checked_name, checked_wait_s

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    #: A transaction, as psycopg or SQLAlchemy has it.
    Transaction = psycopg.Connection[Any] | Session

_TRY = {
    False: "SELECT pg_try_advisory_xact_lock(%s)",
    True: "SELECT pg_try_advisory_xact_lock_shared(%s)",
}
_WAIT = {False: "SELECT pg_advisory_xact_lock(%s)", True: "SELECT pg_advisory_xact_lock_shared(%s)"}
_TIMEOUT = "SELECT current_setting('lock_timeout')"
_SET_TIMEOUT = "SELECT set_config('lock_timeout', %s, true)"


class _Thread(threading.local):
    """The names a thread holds by `AdvisoryLock.hold`, each in a transaction of its own."""

    def __init__(self) -> None:
        self.holds: set[str] = set()


_thread = _Thread()


def key_of(name: str) -> int:
    """Return the 64-bit key of a name: the first eight bytes of its SHA-256 in UTF-8, as a signed number.

    In SQL: `('x' || left(encode(sha256(convert_to(name, 'UTF8')), 'hex'), 16))::bit(64)::bigint`. Two names with the same key
    exclude each other without need; among a million names that is to be expected once in forty million cases.
    """
    return int.from_bytes(hashlib.sha256(checked_name(name).encode()).digest()[:8], "big", signed=True)


class AdvisoryLock:
    """A lock by name that a transaction holds until it commits or rolls back.

        lock = AdvisoryLock("account:7")
        with session() as db, db.begin():
            lock.acquire(db, wait_s=5)
            ...                          # what is written here is committed under the lock, or not at all

        with lock.hold(wait_s=5) as db:  # the same, with a transaction of its own
            ...

    `shared` lets others hold it who say so too, and keeps out those who do not. Within one transaction it may be taken again. It
    needs no server but Postgres, works behind a pooler, and has neither ttl nor fencing token, since it needs none: what is
    written in the transaction that holds it cannot commit without it.

    Raises `InvalidLock` for a name that cannot be, and for a connection that is in no transaction.

    **Guarantee:** at no time do two transactions hold it, whoever is paused, killed or cut off. When the server fails or ends
    the connection, the lock and all that was written under it are gone together. It says nothing of what is done elsewhere.
    """

    def __init__(self, name: str) -> None:
        self.name = checked_name(name)
        self.key = key_of(name)

    def try_acquire(self, tx: Transaction, *, shared: bool = False) -> bool:
        """Take it for the rest of the transaction, or return False when it is held."""
        return _one(_connection(tx), _TRY[shared], self.key) is True

    def acquire(self, tx: Transaction, wait_s: float = 0.0, *, shared: bool = False) -> None:
        """Take it for the rest of the transaction, after waiting for `wait_s` seconds at most, in the order of asking.

        Raises `LockBusy`; the transaction goes on as it was before.
        """
        wait_s, conn = checked_wait_s(wait_s), _connection(tx)
        if _one(conn, _TRY[shared], self.key) or (wait_s and self._wait(conn, wait_s, shared)):
            return
        raise LockBusy(f"lock {self.name!r} is held by another transaction", name=self.name)

    def _wait(self, conn: psycopg.Connection[Any], wait_s: float, shared: bool) -> bool:
        deadline = time.monotonic() + wait_s
        try:
            with conn.transaction():  # a savepoint: giving up must not cost the caller its transaction
                before = _one(conn, _TIMEOUT)
                left_ms = max(1, round((deadline - time.monotonic()) * 1000))
                _one(conn, _SET_TIMEOUT, f"{left_ms}ms")
                _one(conn, _WAIT[shared], self.key)
                _one(conn, _SET_TIMEOUT, before)
        except pg.LockNotAvailable:
            return False
        return True

    @contextmanager
    def hold(self, wait_s: float = 0.0, *, shared: bool = False) -> Iterator[Session]:
        """Hold it within the block, in a transaction of its own that commits at the end; lend its session.

        Raises as `acquire`, `LockReentered` when this thread holds it so already, `LedgerUnavailable` when Postgres is away.
        """
        if self.name in _thread.holds:
            raise LockReentered(f"lock {self.name!r} is held by this thread already, in another transaction", name=self.name)
        with translated(), session() as own, own.begin():
            self.acquire(own, wait_s, shared=shared)
            _thread.holds.add(self.name)
            try:
                yield own
            finally:
                _thread.holds.discard(self.name)


def _connection(tx: Transaction) -> psycopg.Connection[Any]:
    conn: Any = tx
    if not isinstance(tx, psycopg.Connection):
        from sqlalchemy.orm import Session

        conn = raw(tx) if isinstance(tx, Session) else tx
    if not isinstance(conn, psycopg.Connection):
        raise InvalidLock(f"tx: {type(tx).__name__} is neither a SQLAlchemy Session nor a psycopg Connection")
    if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
        raise InvalidLock("tx: the connection is in no transaction, and would give the lock up at once; begin one")
    return conn


def _one(conn: psycopg.Connection[Any], query: str, *values: Any) -> Any:
    row = conn.execute(query, values).fetchone()
    return row[0] if row else None
