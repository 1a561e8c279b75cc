"""What `holdfast doctor` asks of Postgres: its clock, forgotten transactions, bloated indexes, partitions, schedules, workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from worker.ledger import history
from worker.settings import settings

_CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8"

_IDLE = """
SELECT pid, application_name, extract(epoch FROM clock_timestamp() - state_change)::float8 FROM pg_stat_activity
 WHERE datname = current_database() AND state LIKE 'idle in transaction%%'
   AND state_change < clock_timestamp() - %(idle_s)s * interval '1 second'
 ORDER BY state_change
"""

#: Pages of each B-tree beside those its rows would fill, nine tenths full, by their number and the average width of their columns
#: as they were last analysed. An estimate: pgstattuple would know, but reads the index whole, and is not installed everywhere.
#: An entry is 8 bytes of tuple header and 4 of line pointer beside its columns; a page of 8192 bytes gives 8168.
_BLOAT = """
SELECT i.relname, i.relpages::int8 * 8192 AS bytes,
       (1 + greatest(1, ceil(i.reltuples::float8 * (12 + 8 * ceil(w.width / 8.0)) / (8168 * 0.9)))) * 8192
  FROM pg_index x
  JOIN pg_class i ON i.oid = x.indexrelid
  JOIN pg_class t ON t.oid = x.indrelid
  JOIN pg_namespace n ON n.oid = t.relnamespace
  JOIN pg_am a ON a.oid = i.relam AND a.amname = 'btree'
  CROSS JOIN LATERAL (
    SELECT coalesce(sum(coalesce(s.avg_width, 16)), 16) AS width
      FROM pg_attribute c
      LEFT JOIN pg_attribute b ON x.indkey[c.attnum - 1] > 0 AND b.attrelid = t.oid AND b.attnum = x.indkey[c.attnum - 1]
      LEFT JOIN pg_stats s ON s.schemaname = n.nspname AND (
        (b.attname IS NOT NULL AND s.tablename = t.relname AND s.attname = b.attname)
        OR (b.attname IS NULL AND s.tablename = i.relname AND s.attname = c.attname))
     WHERE c.attrelid = i.oid) AS w
 WHERE n.oid = (SELECT relnamespace FROM pg_class WHERE oid = 'jobs'::regclass) AND i.relpages::int8 * 8192 >= %(least)s
   AND i.reltuples >= 0
 ORDER BY bytes DESC
"""

_OLD_PARTITIONS = f"""
SELECT count(*) FROM ({history.PARTITIONS}) AS p
 WHERE name ~ '^job_history_[0-9]{{8}}$'
   AND name < 'job_history_' || to_char((clock_timestamp() AT TIME ZONE 'UTC')::date - %(days)s - 1, 'YYYYMMDD')
"""

_STUCK = """
SELECT name, extract(epoch FROM clock_timestamp() - next_tick)::float8 FROM schedules
 WHERE enabled AND next_tick < clock_timestamp() - %(late_s)s * interval '1 second' ORDER BY next_tick
"""

_SKEWED = """
SELECT DISTINCT ON (host) host, ahead_s FROM worker_nodes
 WHERE left_at IS NULL AND abs(ahead_s) > %(most_s)s ORDER BY host, abs(ahead_s) DESC
"""
_SILENT = """
SELECT name, extract(epoch FROM clock_timestamp() - beat_at)::float8 FROM worker_nodes
 WHERE left_at IS NULL AND beat_at < clock_timestamp() - %(silent_s)s * interval '1 second'
   AND pg_postmaster_start_time() < clock_timestamp() - %(silent_s)s * interval '1 second'
 ORDER BY beat_at
"""

#: Jobs that lie where nobody looks for them: sent in another life of the broker.
_OLD_EPOCH = """
SELECT count(*) FROM jobs WHERE state = 'queued' AND dispatch_epoch IS NOT NULL AND dispatch_epoch <> %(epoch)s
"""

_QUEUE_NAMES = """
SELECT name FROM queues UNION SELECT unnest(queues) FROM worker_nodes UNION SELECT queue FROM jobs WHERE state = 'queued'
"""


@dataclass(frozen=True)
class Bloat:
    """An index, its size in bytes, and about the size its entries would take."""

    index: str
    bytes: int
    needed: int


def clock(conn: psycopg.Connection[Any]) -> float:
    """Return the time of Postgres in seconds since 1970."""
    row = conn.execute(_CLOCK).fetchone()
    assert row is not None
    return float(row[0])


def idle_in_transaction(conn: psycopg.Connection[Any], idle_s: float) -> list[tuple[int, str, float]]:
    """Return pid, name and seconds of each connection that has been idle in a transaction for so long."""
    return conn.execute(_IDLE, {"idle_s": idle_s}).fetchall()


def bloated(conn: psycopg.Connection[Any], *, least: int, ratio: float) -> list[Bloat]:
    """Return the indexes of at least so many bytes that are by estimate so many times as large as they need to be."""
    rows = conn.execute(_BLOAT, {"least": least}).fetchall()
    return [Bloat(name, size, int(needed)) for name, size, needed in rows if size > ratio * needed]


def old_partitions(conn: psycopg.Connection[Any]) -> int:
    """Return how many days of history are kept that should have been dropped."""
    row = conn.execute(_OLD_PARTITIONS, {"days": settings().history_days}).fetchone()
    assert row is not None
    return int(row[0])


def stuck_schedules(conn: psycopg.Connection[Any], late_s: float) -> list[tuple[str, float]]:
    """Return name and seconds of each schedule that is late by so long."""
    return conn.execute(_STUCK, {"late_s": late_s}).fetchall()


def silent_nodes(conn: psycopg.Connection[Any], silent_s: float) -> list[tuple[str, float]]:
    """Return name and seconds of each worker that has been silent for so long and that no relay has declared dead."""
    return conn.execute(_SILENT, {"silent_s": silent_s}).fetchall()


def skewed_hosts(conn: psycopg.Connection[Any], most_s: float) -> list[tuple[str, float]]:
    """Return each host with workers whose clock differs from that of Postgres by more than so many seconds, and by how many."""
    return conn.execute(_SKEWED, {"most_s": most_s}).fetchall()


def sent_elsewhere(conn: psycopg.Connection[Any], epoch: str) -> int:
    """Return how many jobs were sent in another life of the broker than this and not claimed."""
    row = conn.execute(_OLD_EPOCH, {"epoch": epoch}).fetchone()
    assert row is not None
    return int(row[0])


def queue_names(conn: psycopg.Connection[Any]) -> set[str]:
    """Return the names of all queues that have settings, a worker or jobs on their way."""
    return {row[0] for row in conn.execute(_QUEUE_NAMES).fetchall()}
