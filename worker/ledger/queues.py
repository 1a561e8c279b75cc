"""What people have set for queues, through the cache: which are paused, and how much of each may lie in Redis."""

from __future__ import annotations

import time
from typing import Any, TypedDict

import psycopg

from worker.cache import Region, outbox
from worker.db import repeatable
from worker.errors import CacheError, LedgerUnavailable
from worker.settings import settings
from worker.telemetry import OUTAGES

#: The largest window of a queue, as the setting has it.
MOST_WINDOW = 100_000
#: Seconds a process goes by the windows that it last saw, for every job that is accepted asks.
_TRUST_S = 1.0

_ROWS = 'SELECT name, paused, "window" FROM queues'
_SET_WINDOW = """
INSERT INTO queues (name, "window") VALUES (%(name)s, %(window)s)
ON CONFLICT (name) DO UPDATE SET "window" = excluded."window", updated_at = clock_timestamp()
"""


class QueueSettings(TypedDict):
    """What people have set for one queue; no window means the setting's."""

    name: str
    paused: bool
    window: int | None


#: Each change here invalidates; the life bounds what a change by hand in the database takes to be seen.
_kept = Region("queues", ttl=10.0, type=list[QueueSettings])

_seen: tuple[float, dict[str, int]] = (0.0, {})


def queue_settings() -> list[QueueSettings]:
    """Return what people have set for queues, through the cache; a change is seen as soon as it has committed."""
    return _kept.get_or_load("all", lambda: repeatable(_read))


def _read(conn: psycopg.Connection[Any]) -> list[QueueSettings]:
    return [QueueSettings(name=row[0], paused=row[1], window=row[2]) for row in conn.execute(_ROWS).fetchall()]


def forget_settings(changes: outbox.Changes) -> None:
    """Let the transaction of these changes make the cache forget what is set."""
    changes.add(keys=[_kept.key("all")])


def set_window(conn: psycopg.Connection[Any], queue: str, window: int | None) -> None:
    """Set how many jobs of a queue may lie in Redis at a time; None for as many as the setting says. Raises `ValueError`.

    It holds in every process within a second. Those that lie there already stay.
    """
    if window is not None and not 1 <= window <= MOST_WINDOW:
        raise ValueError(f"window: {window} is not a whole number from 1 to {MOST_WINDOW}")
    with outbox.transaction(conn) as changes:
        conn.execute(_SET_WINDOW, {"name": queue, "window": window})
        forget_settings(changes)


def window_of(queue: str) -> int:
    """Return how many jobs of a queue may lie in Redis, as this process saw within a second; never raises.

    While neither the cache nor Postgres answers, what it saw last holds.
    """
    global _seen
    until, windows = _seen
    if time.monotonic() >= until:
        try:
            windows = {row["name"]: row["window"] for row in queue_settings() if row["window"] is not None}
        except (CacheError, LedgerUnavailable):
            OUTAGES.labels("queue windows", "as last seen").inc()
        _seen = (time.monotonic() + _TRUST_S, windows)
    return windows.get(queue) or settings().window


def look_again() -> None:
    """Let this process read the windows anew."""
    global _seen
    _seen = (0.0, {})
