"""The past: a partition a day, made ahead of time and dropped when old."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import psycopg

from worker.ledger import events
from worker.settings import settings
from worker.telemetry import log

logger = log(__name__)

#: Days ahead for which partitions exist, so that a week without upkeep does no harm; after that the default partition takes them.
_AHEAD = 7
_LOCK = 4_710_922_316
#: Seconds to wait for a table.
_LOCK_S = 1

#: Each partition by its name, and as statements call it: a user's path may have led the one that made it into another schema.
PARTITIONS = """
SELECT c.relname::text AS name, p.relid::text AS address
  FROM pg_partition_tree('job_history') p JOIN pg_class c ON c.oid = p.relid
 WHERE p.isleaf
"""
_SCHEMA = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'job_history'::regclass"
_DEFAULT_HOLDS = "SELECT EXISTS (SELECT FROM job_history_default WHERE finished_at >= %s AND finished_at < %s)"
_PRUNE = (
    "DELETE FROM attempts WHERE ended_at < %(before)s",
    "DELETE FROM effects WHERE created_at < %(before)s",
    # A chord that waits for a part that is scheduled far ahead is kept.
    "DELETE FROM chord_parts p USING chords c WHERE c.group_id = p.group_id AND c.done_at < %(before)s",
    "DELETE FROM chords WHERE done_at < %(before)s OR (size IS NULL AND created_at < %(before)s)",
    "DELETE FROM job_history_default WHERE finished_at < %(before)s",
    "DELETE FROM job_keys WHERE expires_at < clock_timestamp()",
    "DELETE FROM audit_log WHERE at < %(before)s",
)


def name_of(day: date) -> str:
    """Return the partition that holds the jobs which finished on this day, UTC."""
    return f"job_history_{day:%Y%m%d}"


def keep_up(conn: psycopg.Connection[Any]) -> dict[str, list[str]]:
    """Make the partitions of the days ahead and drop those older than `history_days`; return the names of both.

    Safe to run anywhere, any number of times. What would have to wait for a long reader of history is left for the next time:
    every job that ends would queue up behind it.
    """
    row = conn.execute("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date").fetchone()
    assert row is not None
    today: date = row[0]
    existing: dict[str, str] = dict(conn.execute(PARTITIONS).fetchall())
    ahead = [today + timedelta(days=n) for n in range(_AHEAD + 1)]
    made = [name_of(day) for day in ahead if name_of(day) not in existing and _briefly(conn, partial(_make, conn, day))]
    oldest = name_of(today - timedelta(days=settings().history_days))
    old = sorted(name for name in existing if name.removeprefix("job_history_").isdigit() and name < oldest)
    dropped = [name for name in old if _briefly(conn, partial(_drop, conn, existing[name]))]
    before = datetime.combine(today - timedelta(days=settings().history_days), datetime.min.time(), UTC)
    for statement in _PRUNE:
        conn.execute(statement, {"before": before})
    events.prune(conn, settings().events_days)
    return {"made": made, "dropped": dropped}


def _briefly(conn: psycopg.Connection[Any], work: Callable[[], bool]) -> bool:
    """Do it in a transaction of its own, unless another does or a table is not to be had soon; tell whether it was done."""
    try:
        with conn.transaction():
            conn.execute(f"SET LOCAL lock_timeout = '{_LOCK_S}s'")
            row = conn.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,)).fetchone()
            return bool(row and row[0]) and work()
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DuplicateTable, psycopg.errors.UndefinedTable) as exc:
        logger.info("upkeep of history is left for the next time", reason=str(exc).splitlines()[0])
        return False


def _make(conn: psycopg.Connection[Any], day: date) -> bool:
    schema = conn.execute(_SCHEMA).fetchone()
    assert schema is not None
    name, start = f"{schema[0]}.{name_of(day)}", datetime.combine(day, datetime.min.time(), UTC)
    end = start + timedelta(days=1)
    held = conn.execute(_DEFAULT_HOLDS, (start, end)).fetchone()
    if held and held[0]:  # Its rows would have to be moved under a lock; the day stays where it is.
        return False
    # Made apart and attached: that does not lock history as making a partition of it would.
    conn.execute(f"CREATE TABLE {name} (LIKE job_history INCLUDING ALL)")
    conn.execute(f"ALTER TABLE job_history ATTACH PARTITION {name} FOR VALUES FROM ('{start}') TO ('{end}')")
    return True


def _drop(conn: psycopg.Connection[Any], address: str) -> bool:
    conn.execute(f"DROP TABLE {address}")
    return True
