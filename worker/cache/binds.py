"""The engines and connections behind sessions: which of them the cache speaks for, and connections that only loaders use."""

from __future__ import annotations

import os
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary, finalize

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool, QueuePool

from worker import db

#: How SQLAlchemy calls the option by which one model stands for the tables of several tenants.
_MAP = "schema_translate_map"


def is_shared(session: Session, bind: Engine | Connection, statement: Any = None) -> bool:
    """Tell whether a session reads there what all sessions do: the tables that models name, in Holdfast's database.

    One that renames schemas, or is on another database, has rows of its own under keys that would be the same.
    """
    ours = db.engine().url.database
    if (bind.engine.url.database or ours) != ours:
        return False
    options = [bind.get_execution_options(), session.execution_options]
    options += [made.get_execution_options() for made in (statement, _connected(session, bind)) if made is not None]
    return not any(given.get(_MAP) for given in options)


def _connected(session: Session, bind: Engine | Connection) -> Connection | None:
    """Return the connection that a session's transaction already has, without taking one from the pool."""
    transaction = session.get_transaction()
    held = transaction._connections.get(bind) if transaction is not None else None
    return held[0] if held is not None else None


# ---- loaders


class _Apart(Engine):
    """An engine beside another: same database, dialect and events, other connections."""

    #: They come by way of the other engine's.
    _sa_propagate_class_events = False

    def __init__(self, beside: Engine) -> None:
        super().__init__(beside.pool.recreate(), beside.dialect, beside.url, hide_parameters=beside.hide_parameters)
        self.dispatch = self.dispatch._join(beside.dispatch)


_apart: WeakKeyDictionary[Pool, _Apart] = WeakKeyDictionary()
_making = Lock()


def alone(bind: Engine | Connection) -> Session:
    """Return a session for a loader, on a connection of its own.

    Never the caller's: its transaction may read a snapshot (REPEATABLE READ) that is older than an invalidation which has been
    carried out before this loader took its lease. The fill would be accepted, and put the old row back for a whole life. A
    statement of its own sees what was committed before it began, and that is all the lease vouches for.

    Nor from the caller's pool, of which each caller already holds a connection: were they as many as it has, all would wait.
    """
    engine = bind.engine
    options = {**engine.get_execution_options(), "isolation_level": "AUTOCOMMIT"}
    return Session(_beside(engine).execution_options(**options))


def _beside(engine: Engine) -> Engine:
    pool = engine.pool
    if not isinstance(pool, QueuePool):  # one without a bound, or with a single connection that is all there is
        return engine
    if (found := _apart.get(pool)) is None:
        with _making:
            if (found := _apart.get(pool)) is None:
                found = _apart[pool] = _Apart(engine)
                finalize(pool, found.dispose)
    return found


def _after_fork() -> None:
    global _making
    _making = Lock()
    for engine in list(_apart.values()):
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_after_fork)
