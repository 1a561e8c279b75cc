"""The past: a partition a day, made ahead of time and dropped when old."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg

from worker.settings import settings

#: Days ahead for which partitions exist, so that a week without upkeep does no harm; after that the default partition takes them.
_AHEAD = 7
_LOCK = 4_710_922_316

_PARTITIONS = "SELECT relid::text FROM pg_partition_tree('job_history') WHERE isleaf"
_DEFAULT_HOLDS = "SELECT EXISTS (SELECT FROM job_history_default WHERE finished_at >= %s AND finished_at < %s)"
_PRUNE = (
    "DELETE FROM attempts WHERE ended_at < %(before)s",
    "DELETE FROM effects WHERE created_at < %(before)s",
    "DELETE FROM chord_parts p USING chords c WHERE c.group_id = p.group_id AND c.created_at < %(before)s",
    "DELETE FROM chords WHERE created_at < %(before)s",
    "DELETE FROM job_history_default WHERE finished_at < %(before)s",
    "DELETE FROM job_keys WHERE expires_at < clock_timestamp()",
)


def name_of(day: date) -> str:
    """Return the partition that holds the jobs which finished on this day, UTC."""
    return f"job_history_{day:%Y%m%d}"


def keep_up(conn: psycopg.Connection[Any]) -> dict[str, list[str]]:
    """Make the partitions of the days ahead and drop those older than `history_days`; return the names of both.

    Safe to run anywhere, any number of times.
    """
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        row = conn.execute("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date").fetchone()
        assert row is not None
        today: date = row[0]
        existing = {r[0] for r in conn.execute(_PARTITIONS).fetchall()}
        made = [name_of(day) for day in (today + timedelta(days=n) for n in range(_AHEAD + 1)) if _make(conn, day, existing)]
        oldest = name_of(today - timedelta(days=settings().history_days))
        dropped = sorted(name for name in existing if name.removeprefix("job_history_").isdigit() and name < oldest)
        for name in dropped:
            conn.execute(f"DROP TABLE {name}")
        before = datetime.combine(today - timedelta(days=settings().history_days), datetime.min.time(), UTC)
        for statement in _PRUNE:
            conn.execute(statement, {"before": before})
    return {"made": made, "dropped": dropped}


def _make(conn: psycopg.Connection[Any], day: date, existing: set[str]) -> bool:
    name = name_of(day)
    start = datetime.combine(day, datetime.min.time(), UTC)
    end = start + timedelta(days=1)
    if name in existing:
        return False
    held = conn.execute(_DEFAULT_HOLDS, (start, end)).fetchone()
    if held and held[0]:  # Its rows would have to be moved under a lock; the day stays where it is.
        return False
    conn.execute(f"CREATE TABLE {name} PARTITION OF job_history FOR VALUES FROM ('{start}') TO ('{end}')")
    return True
