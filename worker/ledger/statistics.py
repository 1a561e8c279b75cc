"""Figures over all jobs, too dear to be asked of Postgres by all who look: read through the cache, kept warm by beat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import psycopg

from worker.cache import cached
from worker.db import repeatable

#: Hours that `activity` looks back on by default; beat keeps these warm.
HOURS = 24
#: Hours it looks back on at most: a week of history.
MOST_HOURS = 168
#: Seconds that one aggregate may take before Postgres gives it up.
_LIMIT_S = 60

#: The living are few and indexed for claims; the past is a partition a day without an index on when its jobs ended.
_AGGREGATE = ("SET LOCAL enable_seqscan = on", f"SET LOCAL statement_timeout = '{_LIMIT_S}s'")

#: By task and hour, and, with no hour, by task. The time of a run is that of its last attempt.
#: Rows written by SQL may hold moments without an end, which are no figures.
_ACTIVITY = """
SELECT task, date_trunc('hour', finished_at, 'UTC') AS hour, count(*),
       count(*) FILTER (WHERE state = 'succeeded'), count(*) FILTER (WHERE state IN ('failed', 'discarded')),
       percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - claimed_at)::float8)
         FILTER (WHERE isfinite(claimed_at) AND state IN ('succeeded', 'failed'))
  FROM job_history
 WHERE finished_at >= date_trunc('hour', now(), 'UTC') - (%(hours)s - 1) * interval '1 hour' AND finished_at < now()
 GROUP BY GROUPING SETS ((task, date_trunc('hour', finished_at, 'UTC')), (task))
 ORDER BY task, hour NULLS LAST
"""
_BACKLOG = """
SELECT queue, coalesce(q.paused, false), count(*) FILTER (WHERE waits), count(*) FILTER (WHERE state = 'running'),
       count(*) FILTER (WHERE NOT waits AND state = 'scheduled'),
       extract(epoch FROM now() - min(available_at) FILTER (WHERE waits AND isfinite(available_at)))::float8
  FROM (SELECT queue, state, available_at, state = 'queued' OR state = 'scheduled' AND available_at <= now() AS waits
          FROM jobs) AS living
  LEFT JOIN queues q ON q.name = queue
 GROUP BY queue, q.paused ORDER BY queue
"""
_STATES = """
SELECT state, count(*) FROM jobs GROUP BY state
UNION ALL
SELECT state, count(*) FROM job_history WHERE finished_at >= now() - interval '24 hours' GROUP BY state
"""
_NOW = "SELECT now()"


class Hour(msgspec.Struct, frozen=True):
    """What became of one task's jobs that ended in one hour; `failed` counts discarded ones as well."""

    task: str
    hour: datetime
    ended: int
    succeeded: int
    failed: int


class TaskFigures(msgspec.Struct, frozen=True):
    """One task over the whole time looked at; run times in seconds, None when none has run."""

    task: str
    ended: int
    succeeded: int
    failed: int
    p50_s: float | None
    p95_s: float | None


class Activity(msgspec.Struct, frozen=True):
    """What has ended lately: when that was counted, from which hour on, and the figures."""

    at: datetime
    hours: int
    by_hour: list[Hour]
    by_task: list[TaskFigures]


class QueueBacklog(msgspec.Struct, frozen=True):
    """One queue's living jobs: those that wait and are due, those that run, those of later, and the longest wait in seconds."""

    queue: str
    paused: bool
    waiting: int
    running: int
    scheduled: int
    oldest_s: float | None


class Backlog(msgspec.Struct, frozen=True):
    """What waits, and when that was counted."""

    at: datetime
    queues: list[QueueBacklog]


def _check_hours(hours: int) -> None:
    if not 1 <= hours <= MOST_HOURS:
        raise ValueError(f"hours {hours!r}: must be from 1 to {MOST_HOURS}")


@cached(ttl=30.0, stale_while_revalidate=600.0, max_stale=3600.0, tags=("statistics",),
        name="statistics.activity", warm=[(HOURS,)], check=_check_hours)  # fmt: skip
def activity(hours: int = HOURS) -> Activity:
    """Return throughput, failures and run times of the last hours, the current one included, by task.

    Counted anew every half minute at most, and in the background: who asks first after a quiet time is told what was known, up to
    ten minutes old, and up to an hour while Postgres is away; `at` says how old. Raises `ValueError` for hours out of range.
    """
    return repeatable(lambda conn: _count_activity(conn, hours))


@cached(ttl=2.0, stale_while_revalidate=60.0, max_stale=600.0, tags=("statistics",), name="statistics.backlog",
        warm=[()])  # fmt: skip
def backlog() -> Backlog:
    """Return how many jobs of each queue wait and for how long, counted anew every two seconds at most, as `activity` is."""
    return repeatable(_count_backlog)


@cached(ttl=5.0, stale_while_revalidate=600.0, max_stale=3600.0, tags=("statistics",), name="statistics.states")
def states() -> dict[str, int]:
    """Return how many jobs live in each state, and how many came to each end within a day, counted anew every five seconds."""
    return repeatable(_count_states)


def _count_states(conn: psycopg.Connection[Any]) -> dict[str, int]:
    with aggregating(conn):
        return dict(conn.execute(_STATES).fetchall())


def _count_activity(conn: psycopg.Connection[Any], hours: int) -> Activity:
    with aggregating(conn) as at:
        rows = conn.execute(_ACTIVITY, {"hours": hours}).fetchall()
    by_hour = [Hour(row[0], row[1].astimezone(UTC), *row[2:5]) for row in rows if row[1] is not None]
    by_task = [TaskFigures(row[0], *row[2:5], *(row[5] or (None, None))) for row in rows if row[1] is None]
    return Activity(at, hours, by_hour, by_task)


def _count_backlog(conn: psycopg.Connection[Any]) -> Backlog:
    with aggregating(conn) as at:
        return Backlog(at, [QueueBacklog(*row) for row in conn.execute(_BACKLOG).fetchall()])


@contextmanager
def aggregating(conn: psycopg.Connection[Any]) -> Iterator[datetime]:
    """Let the block read whole tables, within its time; gives the moment it began."""
    with conn.transaction():
        for setting in _AGGREGATE:
            conn.execute(setting)
        row = conn.execute(_NOW).fetchone()
        assert row is not None
        yield row[0].astimezone(UTC)
