"""What is to be sent: due jobs up to each queue's window, jobs a dead broker forgot, and jobs whose message got lost."""

from __future__ import annotations

from typing import Any

import psycopg

from worker.ledger.publish import Sendable

#: Hops from queue to queue over the indexes, so the cost is that of the queues, not of the jobs in them.
_HOP = """
hop_{name} AS (
  (SELECT queue FROM jobs WHERE gate {gate} AND dispatch_epoch IS NULL AND state IN ('scheduled', 'queued')
    ORDER BY queue LIMIT 1)
  UNION ALL
  SELECT (SELECT j.queue FROM jobs j WHERE j.gate {gate} AND j.dispatch_epoch IS NULL AND j.state IN ('scheduled', 'queued')
             AND j.queue > hop_{name}.queue ORDER BY j.queue LIMIT 1)
    FROM hop_{name} WHERE hop_{name}.queue IS NOT NULL)
"""
_QUEUES = f"""
WITH RECURSIVE {_HOP.format(name='free', gate='IS NULL')}, {_HOP.format(name='gated', gate='IS NOT NULL')}
SELECT hop.queue, coalesce(q.paused, false), q."window", bool_or(hop.gated)
  FROM (SELECT queue, false AS gated FROM hop_free UNION ALL SELECT queue, true FROM hop_gated) AS hop
  LEFT JOIN queues q ON q.name = hop.queue WHERE hop.queue IS NOT NULL GROUP BY 1, 2, 3
"""

#: A priority's due jobs in order; ten short index scans serve priorities before age without sorting a backlog of millions.
#: The moment is the statement's, which an index can be searched for: `clock_timestamp()` would be asked for each job not due yet.
#: Here and below the ids are gathered first, in an array: a join with them is planned for the table as it was when it was last
#: looked at, perhaps empty, and then takes minutes on a full one.
_TAKE = """
UPDATE jobs SET state = 'queued', dispatch_epoch = %(epoch)s, dispatched_at = clock_timestamp()
 WHERE id = ANY(ARRAY(
  SELECT d.id FROM generate_series(0, 9) AS p(priority),
  LATERAL (SELECT id FROM jobs
            WHERE queue = %(queue)s AND jobs.priority = p.priority AND gate IS NULL AND dispatch_epoch IS NULL
              AND state IN ('scheduled', 'queued') AND available_at <= statement_timestamp()
            ORDER BY available_at, id LIMIT %(room)s FOR UPDATE SKIP LOCKED) AS d
  LIMIT %(room)s))
RETURNING id, queue, priority, revision, message, (extract(epoch FROM dispatched_at) * 1000)::int8,
          extract(epoch FROM available_at)::float8
"""

#: Everything sent in an earlier life of the broker and not claimed.
_FORGOTTEN = """
UPDATE jobs SET dispatch_epoch = NULL, dispatched_at = NULL
 WHERE id = ANY(ARRAY(
  SELECT id FROM jobs WHERE state = 'queued' AND dispatch_epoch IS NOT NULL AND dispatch_epoch <> %(epoch)s
     FOR UPDATE SKIP LOCKED))
RETURNING id
"""

#: The queues and buckets with jobs sent so long ago that one may have been lost.
_SUSPECT = """
SELECT DISTINCT queue, priority FROM jobs
 WHERE state = 'queued' AND dispatch_epoch IS NOT NULL AND dispatched_at < clock_timestamp() - %(after_s)s * interval '1 second'
"""
#: A queue is first in, first out: what was sent before the oldest message that still waits has been taken out. If it is not
#: claimed by now, whoever took it is gone. Sending it again is harmless where that is wrong.
_LOST = """
UPDATE jobs SET dispatch_epoch = NULL, dispatched_at = NULL
 WHERE id = ANY(ARRAY(
  SELECT id FROM jobs
   WHERE state = 'queued' AND dispatch_epoch IS NOT NULL AND queue = %(queue)s AND priority = ANY(%(priorities)s)
     AND dispatched_at < clock_timestamp() - %(after_s)s * interval '1 second'
     AND (%(oldest_ms)s::float8 IS NULL
          OR dispatched_at < to_timestamp(%(oldest_ms)s::float8 / 1000) - %(after_s)s * interval '1 second')
     FOR UPDATE SKIP LOCKED))
RETURNING id
"""

#: Two scans, each by its own small index.
_OVER = """
(SELECT id, false FROM jobs WHERE expires_at <= statement_timestamp() AND state <> 'running' LIMIT 500)
UNION ALL
(SELECT id, true FROM jobs WHERE cancel_requested AND state <> 'running' LIMIT 500)
"""


def waiting_queues(conn: psycopg.Connection[Any]) -> list[tuple[str, bool, int | None, bool]]:
    """Return name, whether paused, and window of each queue with unsent jobs, and whether some of them are limited."""
    return conn.execute(_QUEUES).fetchall()


def take_due(conn: psycopg.Connection[Any], queue: str, room: int, epoch: str) -> list[Sendable]:
    """Mark up to `room` due jobs of a queue, those that nothing limits, as sent and return them, most urgent first.

    They are to be published after the commit; for the others see `Gate`.
    """
    rows = conn.execute(_TAKE, {"queue": queue, "room": room, "epoch": epoch}).fetchall()
    rows.sort(key=lambda row: (row[2], row[6], row[0]))
    return [Sendable(row[0], row[1], row[2], row[3], row[4], epoch, row[5]) for row in rows]


def forgotten(conn: psycopg.Connection[Any], epoch: str) -> list[str]:
    """Make due again what was sent in another life of the broker; return the ids."""
    return [row[0] for row in conn.execute(_FORGOTTEN, {"epoch": epoch}).fetchall()]


def suspects(conn: psycopg.Connection[Any], after_s: float) -> list[tuple[str, int]]:
    """Return queue and priority where jobs have been waiting for a claim for so long."""
    return conn.execute(_SUSPECT, {"after_s": after_s}).fetchall()


def lost(conn: psycopg.Connection[Any], queue: str, priorities: list[int], after_s: float, oldest_ms: float | None) -> list[str]:
    """Make due again the jobs whose message is no longer in the queue though nobody claimed them; return the ids.

    `oldest_ms` is when the oldest message still in the queue was sent, None when it is empty.
    """
    values = {"queue": queue, "priorities": priorities, "after_s": after_s, "oldest_ms": oldest_ms}
    return [row[0] for row in conn.execute(_LOST, values).fetchall()]


def over(conn: psycopg.Connection[Any]) -> list[tuple[str, bool]]:
    """Return the jobs that wait in vain, and whether somebody cancelled them; the time of the others is over."""
    return conn.execute(_OVER).fetchall()
