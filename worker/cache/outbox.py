"""The outbox: an invalidation is a row in the transaction of the change it follows from, gone once the cache has forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg.pq import TransactionStatus

from worker import faults
from worker.cache.names import each_once, full_key, tag_names
from worker.cache.region import invalidate
from worker.errors import CacheKeyError, StoreUnavailable
from worker.telemetry import OUTAGES, log

if TYPE_CHECKING:
    from sqlalchemy import Connection, TextClause

logger = log(__name__)

#: Seconds for which an invalidation is left to whoever wrote it; then a relay carries it out. One done twice costs a load.
OWN_S = 0.25
#: Rows that one transaction carries out.
BATCH = 200
#: Keys or tags of one round trip.
_PIECE = 32

_WRITE = "INSERT INTO cache_outbox (keys, tags) VALUES (%(keys)s::text[], %(tags)s::text[]) RETURNING id"
_WRITE_ORM = "INSERT INTO cache_outbox (keys, tags) VALUES (CAST(:keys AS text[]), CAST(:tags AS text[])) RETURNING id"
#: The commit is not waited for on disk: a deletion that a crash of Postgres forgets makes a relay invalidate once more.
_STRIKE = "DELETE FROM cache_outbox WHERE id = {id} AND set_config('synchronous_commit', 'off', true) = 'off'"
_STRIKE_RAW, _STRIKE_ORM = _STRIKE.format(id="%s"), _STRIKE.format(id=":id")
_TAKE = f"""
DELETE FROM cache_outbox WHERE id IN (
  SELECT id FROM cache_outbox WHERE created_at < clock_timestamp() - {OWN_S} * interval '1 second'
   ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED)
RETURNING keys, tags
"""  # noqa: S608 - a constant put together from a constant

#: What may be owed beside keys and tags, by what its keys begin with: a colon, as no region's do.
_others: dict[str, Callable[[str], bool]] = {}

#: What the outermost block that is open on a connection will forget.
_open: WeakKeyDictionary[psycopg.Connection[Any], Changes] = WeakKeyDictionary()

_OWED = "SELECT count(*), extract(epoch FROM clock_timestamp() - min(created_at))::float8 FROM cache_outbox"


@dataclass
class Changes:
    """What a transaction makes the cache forget: full keys, as `Region.key` gives them, and tags."""

    keys: set[str] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.keys or self.tags)

    def add(self, keys: Iterable[str] = (), tags: Iterable[str] = ()) -> None:
        """Forget these as well. Raises `CacheKeyError` for what is no key or tag, before the change is made rather than after."""
        self.keys.update(full_key("", key) for key in each_once(keys, "keys"))
        self.tags.update(name for tag in each_once(tags, "tags") for name in tag_names((tag,)))

    def values(self) -> dict[str, list[str]]:
        """Return them as a row holds them, in one order, so that transactions that change the same are alike."""
        return {"keys": sorted(self.keys), "tags": sorted(self.tags)}


@contextmanager
def transaction(conn: psycopg.Connection[Any]) -> Iterator[Changes]:
    """Run a block as a transaction of raw SQL; what it adds to the changes is forgotten by the cache once it has committed.

        with statement() as conn, transaction(conn) as changes:
            conn.execute("UPDATE prices SET ...")
            changes.add(tags=["prices"])

    Inside another such block its changes are that one's. Inside another longer transaction the row waits for that one's commit,
    and a relay carries it out.

    **Guarantee:** committed is invalidated, also when this process dies in between (then by a relay, within a second); rolled
    back is not. While the cache Redis is away the row stays, and the change is not held up.
    """
    changes, row = Changes(), None
    outer = _open.get(conn)
    if outer is not None:
        with conn.transaction():
            yield changes
        outer.keys |= changes.keys
        outer.tags |= changes.tags
        return
    _open[conn] = changes
    try:
        with conn.transaction():
            yield changes
            if changes:
                row = conn.execute(_WRITE, changes.values()).fetchone()
    finally:
        del _open[conn]
    if row is not None and conn.info.transaction_status == TransactionStatus.IDLE:
        carry_out(changes, lambda: _strike(conn, row))


def _strike(conn: psycopg.Connection[Any], row: tuple[Any, ...]) -> None:
    with conn.transaction():  # also on a connection that is not in autocommit mode
        conn.execute(_STRIKE_RAW, row)


@cache
def _orm(sql: str) -> TextClause:
    from sqlalchemy import text

    return text(sql)


def owe(conn: Connection, changes: Changes) -> int:
    """Write the changes into the transaction of a session's connection and return the row's id."""
    return int(conn.execute(_orm(_WRITE_ORM), changes.values()).scalar_one())


def strike(conn: Connection, row: int) -> None:
    """Delete a row that was carried out, in a transaction of its own on the session's connection."""
    with conn.begin():
        conn.execute(_orm(_STRIKE_ORM), {"id": row})


def carry_out(changes: Changes, strike_out: Callable[[], object]) -> None:
    """Invalidate what a committed transaction changed, then strike its row out of the outbox.

    Never raises: the change is made, and what fails now is left to a relay.
    """
    try:
        faults.point(faults.BEFORE_INVALIDATE)
        if _forget(changes):
            strike_out()
        else:
            OUTAGES.labels("cache invalidation", "left to the relay").inc()
    except Exception as exc:
        OUTAGES.labels("cache invalidation", "left to the relay").inc()
        logger.warning("an invalidation is left to the relay", error=repr(exc))


def owe_also(prefix: str, act: Callable[[str], bool]) -> None:
    """Let `act` carry out the keys that begin with `prefix`, a word between colons, each without it.

    It tells whether Redis took it, and may be called more than once, also long after the transaction.
    """
    _others[prefix] = act


def _forget(changes: Changes) -> bool:
    """Invalidate in pieces that the cache Redis answers well within its deadline; tell whether it took them all."""
    others = [(prefix, key) for key in changes.keys for prefix in _others if key.startswith(prefix)]
    keys, tags = list(changes.keys.difference(key for _, key in others)), list(changes.tags)
    return (
        all(_others[prefix](key.removeprefix(prefix)) for prefix, key in others)
        and all(invalidate(keys[at : at + _PIECE], ()) for at in range(0, len(keys), _PIECE))
        and all(invalidate((), tags[at : at + _PIECE]) for at in range(0, len(tags), _PIECE))
    )


def owed(conn: psycopg.Connection[Any]) -> tuple[int, float | None]:
    """Return how many invalidations are owed, and for how many seconds the oldest has been."""
    row = conn.execute(_OWED).fetchone()
    assert row is not None
    return row[0], row[1]


def carry_out_overdue(conn: psycopg.Connection[Any], most: int = BATCH) -> int:
    """Carry out the oldest invalidations that their writers left behind, `most` at a time, and return how many.

    Any number of relays may do this at once. Raises `StoreUnavailable` when the cache Redis is away; then the rows stay.
    """
    with conn.transaction():
        rows = conn.execute(_TAKE, (most,)).fetchall()
        changes = Changes()
        for keys, tags in rows:
            for one in (*({"keys": [key]} for key in keys), *({"tags": [tag]} for tag in tags)):
                try:
                    changes.add(**one)
                except CacheKeyError as exc:  # written by hand; nothing can be cached under it
                    logger.warning("an invalidation is dropped", error=str(exc))
        if not _forget(changes):
            raise StoreUnavailable(f"Redis (cache) did not take {len(rows)} invalidations; they stay owed")
    return len(rows)
