"""Locks as people look at them: who holds what since when, who waits, and taking a lock away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worker.db import statement
from worker.errors import StoreRefused
from worker.locks.advisory import key_of
from worker.locks.names import checked_name, holder_of
from worker.locks.verbs import MANY, ONE, keys_of
from worker.store import coordination, keys

#: Keys that are looked through in one round trip.
_STEP = 1000

#: A key of 64 bits stands in two halves of 32.
_IN_POSTGRES = """
SELECT a.pid, a.application_name, l.mode = 'ShareLock', l.granted, extract(epoch FROM clock_timestamp() - a.xact_start)::float8
  FROM pg_locks l JOIN pg_stat_activity a USING (pid)
 WHERE l.locktype = 'advisory' AND l.objsubid = 1
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.classid::int8 = (%(key)s::int8 >> 32) & 4294967295 AND l.objid::int8 = %(key)s::int8 & 4294967295
 ORDER BY l.granted DESC, l.waitstart NULLS FIRST
"""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: since how many seconds, under which fence, and the seconds left of its lease. None is not known."""

    name: str
    kind: str
    holder: str
    age_s: float | None
    fence: int | None
    left_s: float | None
    waiting: int


@dataclass(frozen=True)
class Picture:
    """All there is to see of one name: in Redis as a lock and a semaphore, and in Postgres."""

    name: str
    holders: list[Holder]
    waiting: list[str]
    in_postgres: list[dict[str, Any]]


def list_locks(*, jobs: bool = False) -> list[Holder]:
    """Return the locks and semaphores that are held, with `jobs` those of running jobs as well, by name.

    Raises `StoreUnavailable`. Locks of Postgres are not among them: it knows them by their keys alone.
    """
    found = [holder for key in _scan() for holder in _holders(key) if jobs or holder.kind != "job"]
    return sorted(found, key=lambda holder: (holder.kind, holder.name, -(holder.age_s or 0)))


def picture_of(name: str) -> Picture:
    """Return who holds and who waits for a name. Raises `InvalidLock`, `StoreUnavailable`, `LedgerUnavailable`."""
    leases = [keys.lock(checked_name(name)), keys.semaphore(name)]
    holders = [holder for lease in leases for holder in _holders(lease)]
    queues = coordination().ask([("LRANGE", keys.waiters(lease), 0, -1) for lease in leases])
    waiting = [holder_of(waiter.decode().split(" ")[2]) for queue in queues for waiter in queue]
    with statement() as conn:
        rows = conn.execute(_IN_POSTGRES, {"key": key_of(name)}).fetchall()
    fields = ("pid", "holder", "shared", "granted", "age_s")
    return Picture(name, holders, waiting, [dict(zip(fields, row, strict=True)) for row in rows])


def break_lock(name: str) -> bool:
    """Take a lock, or all permits of a semaphore, away from whoever holds it, and serve the next; tell whether there was one.

    Its holder is not stopped: it learns with its next renewal that it lost the lock, and its fence is smaller than the next.
    Raises `InvalidLock`, `StoreUnavailable`.
    """
    lock, semaphore = keys_of(keys.lock(checked_name(name))), keys_of(keys.semaphore(name))
    # How many permits a semaphore has, its users know: one waiter is served, and the next who asks serves the others.
    return any(coordination().ask([ONE.break_.command(lock, [1]), MANY.break_.command(semaphore, [1])]))


def _scan() -> list[str]:
    found: set[str] = set()
    for pattern in ("holdfast:lock:*", "holdfast:semaphore:*"):
        cursor = b"0"
        while True:
            ((cursor, names),) = coordination().ask([("SCAN", cursor, "MATCH", pattern, "COUNT", _STEP)])
            found.update(name.decode() for name in names)
            if int(cursor) == 0:
                break
    return [name for name in found if name.endswith("}")]  # not the fences and queues beside them


def _holders(lease: str) -> list[Holder]:
    kind = "semaphore" if lease.startswith("holdfast:semaphore:") else "job" if lease.startswith("holdfast:lock:job:") else "lock"
    name = lease[lease.index("{") + 1 : -1]
    read = ("ZRANGE", lease, 0, -1, "WITHSCORES") if kind == "semaphore" else ("GET", lease)
    try:
        value, left_ms, fence, waiting, (s, us) = coordination().ask(
            [read, ("PTTL", lease), ("GET", keys.fence(lease)), ("LLEN", keys.waiters(lease)), ("TIME",)]
        )
    except StoreRefused:
        return []  # another's key under such a name
    now = int(s) * 1_000_000 + int(us)
    if kind == "semaphore":
        return [_permit(name, member, now, waiting) for member in _pairs(value) if float(member[1]) > now]
    if value is None:
        return []
    given = int(fence) if fence and kind == "lock" else None
    age_s = max(0.0, (now - given) / 1_000_000) if given else None  # the fence is the time at which it was taken
    holder = holder_of(value.decode()) if kind == "lock" else name
    return [Holder(name, kind, holder, age_s, given, left_ms / 1000, waiting)]


def _permit(name: str, member: tuple[Any, Any], now: int, waiting: int) -> Holder:
    token, ends = member
    return Holder(name, "semaphore", holder_of(token.decode()), None, None, (float(ends) - now) / 1_000_000, waiting)


def _pairs(flat: list[Any]) -> list[tuple[Any, Any]]:
    """Return members with their scores, as either protocol of Redis tells them."""
    return [tuple(pair) for pair in flat] if flat and isinstance(flat[0], list) else list(zip(flat[::2], flat[1::2], strict=True))
