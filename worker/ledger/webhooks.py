"""The deliveries of callbacks as jobs: in which order they go, and how they are found by the job they tell of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import psycopg

from worker.ledger.manage import Filter

#: The task of a delivery. The trigger that makes them is in the migration of the SQL door.
TASK = "webhook.deliver"

#: Whose it is, how old, and in how many seconds the oldest one of the same job is due that is still to go before it.
_TURN = """
SELECT me.caller, extract(epoch FROM clock_timestamp() - me.created_at)::float8,
       (SELECT greatest(extract(epoch FROM first.available_at - clock_timestamp()), 0)::float8 FROM jobs first
         WHERE first.task = 'webhook.deliver' AND first.parent_id = me.parent_id AND first.id <> me.id
           AND (first.created_at, first.id) < (me.created_at, me.id)
         ORDER BY first.created_at, first.id LIMIT 1)
  FROM jobs me WHERE me.id = %s
"""

#: A delivery's id is that of the ending it tells of: the job's id and revision, as the trigger makes it.
_OF_JOB = """
WITH told AS (
  SELECT md5(%(job)s || ' ' || n)::uuid::text AS id
    FROM generate_series(0, (SELECT max(revision) FROM (SELECT revision FROM jobs WHERE id = %(job)s UNION ALL
                                                       SELECT revision FROM job_history WHERE id = %(job)s) AS of_job)) AS n)
SELECT told.id FROM told WHERE EXISTS (SELECT FROM jobs j WHERE j.id = told.id)
                            OR EXISTS (SELECT FROM job_history h WHERE h.id = told.id)
"""


@dataclass(frozen=True, slots=True)
class Turn:
    """Where a delivery stands: whose job it tells of, its age, and the seconds until one is due that must go before it."""

    caller: str | None
    age_s: float
    before_s: float | None


def turn(conn: psycopg.Connection[Any], delivery_id: str) -> Turn:
    """Return where a living delivery stands."""
    row = conn.execute(_TURN, (delivery_id,)).fetchone()
    return Turn(*row) if row else Turn(None, 0.0, None)


def deliveries_of(conn: psycopg.Connection[Any], job_id: str) -> list[str]:
    """Return the ids of the deliveries that tell of a job's ends."""
    return [row[0] for row in conn.execute(_OF_JOB, {"job": job_id}).fetchall()]


def among(which: Filter) -> Filter:
    """Return the filter that narrows to deliveries."""
    return replace(which, task=TASK)
