"""Is anything off? What relays, workers and upkeep should have seen to, found by reading alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from worker.ledger import flags, history

#: Ids named in a report; the counts beside them are whole.
_NAMED = 20
#: Living jobs up to which chords are searched for: the search reads every message.
_SEARCHABLE = 100_000
#: Seconds: a chord this old, of which nothing lives, will not come to an end.
_CHORD_S = 3600.0

_STATES = "SELECT state, count(*) FROM jobs GROUP BY state"

_OLDEST_SENT = """
SELECT extract(epoch FROM clock_timestamp() - min(dispatched_at))::float8 FROM jobs
 WHERE dispatch_epoch IS NOT NULL AND state = 'queued'
"""

#: Jobs of workers that left, fell silent or were forgotten so long ago that a relay must have seen it.
_ORPHANS = """
SELECT j.id, count(*) OVER () FROM jobs j LEFT JOIN worker_nodes n ON n.id = j.worker_id
 WHERE j.state = 'running' AND j.claimed_at < clock_timestamp() - %(after_s)s * interval '1 second'
   AND (n.id IS NULL OR coalesce(n.left_at, n.beat_at) < clock_timestamp() - %(after_s)s * interval '1 second')
 ORDER BY j.claimed_at LIMIT %(named)s
"""

#: Queues with a job that has long been due while nothing of the queue is on its way. One row a queue, by hops over the index.
_UNSENT = """
WITH RECURSIVE hop AS (
  (SELECT queue FROM jobs WHERE dispatch_epoch IS NULL AND state IN ('scheduled', 'queued') ORDER BY queue LIMIT 1)
  UNION ALL
  SELECT (SELECT j.queue FROM jobs j WHERE j.dispatch_epoch IS NULL AND j.state IN ('scheduled', 'queued') AND j.queue > hop.queue
           ORDER BY j.queue LIMIT 1)
    FROM hop WHERE hop.queue IS NOT NULL)
SELECT hop.queue FROM hop LEFT JOIN queues q ON q.name = hop.queue
 WHERE hop.queue IS NOT NULL AND NOT coalesce(q.paused, false)
   AND EXISTS (SELECT FROM generate_series(0, 9) AS p(priority)
                WHERE EXISTS (SELECT FROM jobs j
                               WHERE j.queue = hop.queue AND j.priority = p.priority AND j.dispatch_epoch IS NULL
                                 AND j.state IN ('scheduled', 'queued')
                                 AND j.available_at < clock_timestamp() - %(after_s)s * interval '1 second'))
   AND NOT EXISTS (SELECT FROM jobs j WHERE j.queue = hop.queue AND j.dispatch_epoch IS NOT NULL AND j.state = 'queued')
 ORDER BY hop.queue
"""

#: Queues whose jobs were sent long ago and that no living worker reads.
_UNSERVED = """
SELECT DISTINCT j.queue FROM jobs j LEFT JOIN queues q ON q.name = j.queue
 WHERE j.dispatch_epoch IS NOT NULL AND j.state = 'queued' AND NOT coalesce(q.paused, false)
   AND j.dispatched_at < clock_timestamp() - %(after_s)s * interval '1 second'
   AND NOT EXISTS (SELECT FROM worker_nodes n WHERE j.queue = ANY(n.queues) AND n.left_at IS NULL
                      AND n.beat_at > clock_timestamp() - %(after_s)s * interval '1 second')
 ORDER BY j.queue
"""

#: Old chords that are not done. Only the last task of a chain carries the chord's id in its row, the ones before it in their
#: messages; so a chord lives as long as any message names it.
_STUCK = """
WITH open AS MATERIALIZED (
  SELECT group_id FROM chords
   WHERE done_at IS NULL AND (size IS NOT NULL OR body IS NOT NULL)
     AND created_at < clock_timestamp() - %(after_s)s * interval '1 second'
   ORDER BY created_at LIMIT %(named)s)
SELECT group_id FROM open
 WHERE NOT EXISTS (SELECT FROM jobs j WHERE j.group_id = open.group_id OR position(open.group_id in j.message::text) > 0)
"""

#: Which of the seven days from tomorrow on have a partition.
_DAYS_AHEAD = f"""
SELECT count(*) FROM ({history.PARTITIONS}) AS p
 WHERE name IN (SELECT 'job_history_' || to_char((clock_timestamp() AT TIME ZONE 'UTC')::date + n, 'YYYYMMDD')
                  FROM generate_series(1, 7) AS n)
"""


def look(conn: psycopg.Connection[Any], *, after_s: float) -> dict[str, Any]:
    """Return what the ledger looks like and, under `findings`, a line for each thing that is off. Changes nothing.

    `after_s` is how long relays and workers may take before something counts as missed. Keys: `states` (jobs by state),
    `oldest_sent_s` (age of the oldest message nobody has claimed, or None), `orphans` and `orphan_ids` (running jobs of workers
    that are gone), `unsent_queues`, `unserved_queues`, `stuck_chords` (None when there are too many jobs to tell), `days_ahead`.
    """
    states = dict(conn.execute(_STATES).fetchall())
    orphans = conn.execute(_ORPHANS, {"after_s": after_s, "named": _NAMED}).fetchall()
    report: dict[str, Any] = {
        "states": states,
        "oldest_sent_s": _one(conn, _OLDEST_SENT),
        "orphans": orphans[0][1] if orphans else 0,
        "orphan_ids": [row[0] for row in orphans],
        "unsent_queues": [name for name in _column(conn, _UNSENT, after_s=after_s) if not flags.is_queue_off(name)],
        "unserved_queues": _column(conn, _UNSERVED, after_s=after_s),
        "stuck_chords": None,
        "days_ahead": days_ahead(conn),
    }
    if sum(states.values()) <= _SEARCHABLE:
        report["stuck_chords"] = _column(conn, _STUCK, after_s=_CHORD_S, named=_NAMED)
    return {**report, "findings": findings(report)}


def days_ahead(conn: psycopg.Connection[Any]) -> int:
    """Return how many of the seven days from tomorrow on have a partition of history."""
    return int(_one(conn, _DAYS_AHEAD))


def findings(report: dict[str, Any]) -> list[str]:
    """Return a line for each thing in a report that is off, with what most often helps."""
    lines = {
        "orphans": "{} jobs run on workers that are gone and were not rescued: is a relay running?",
        "unsent_queues": "due jobs are not sent on {}: is a relay running, and does it reach Redis?",
        "unserved_queues": "no living worker reads {}",
        "stuck_chords": "chords without a living part are not done: {}",
    }
    found = [line.format(_listed(report[name])) for name, line in lines.items() if report[name]]
    if not report["days_ahead"]:
        found.append("history has no partition for tomorrow: does beat run, and with it maintenance.upkeep?")
    return found


def _listed(value: int | Sequence[str]) -> str:
    return str(value) if isinstance(value, int) else ", ".join(value)


def _one(conn: psycopg.Connection[Any], sql: str) -> Any:
    row = conn.execute(sql).fetchone()
    return row[0] if row else None


def _column(conn: psycopg.Connection[Any], sql: str, **values: Any) -> list[str]:
    return [row[0] for row in conn.execute(sql, values).fetchall()]
