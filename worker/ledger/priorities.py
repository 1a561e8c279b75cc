"""How the waiting jobs of one queue lie by priority: in Postgres, and in the lists of Redis from which workers take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from worker.errors import StoreUnavailable
from worker.store import coordination, keys
from worker.telemetry import OUTAGES

_COUNTS = """
SELECT priority, count(*) FILTER (WHERE dispatch_epoch IS NULL), count(*) FILTER (WHERE dispatch_epoch IS NOT NULL)
  FROM jobs WHERE queue = %s AND state = 'queued' GROUP BY priority
"""


@dataclass(slots=True)
class Step:
    """Priorities that share a list: jobs in Postgres alone, jobs sent, and messages in the list, None while Redis is away."""

    first: int
    last: int
    backlog: int = 0
    sent: int = 0
    in_redis: int | None = None


def steps_of(conn: psycopg.Connection[Any], queue: str) -> list[Step]:
    """Return what waits in each list of a queue, the one served first first."""
    starts = keys.PRIORITY_STEPS
    found = {first: Step(first, after - 1) for first, after in zip(starts, (*starts[1:], 10), strict=True)}
    for priority, backlog, sent in conn.execute(_COUNTS, (queue,)).fetchall():
        step = found[keys.bucket(min(9, max(0, priority)))]
        step.backlog += backlog
        step.sent += sent
    try:
        lengths = coordination().ask([("LLEN", key) for key in keys.queue_lists(queue)])
    except StoreUnavailable:
        OUTAGES.labels("queue list", "without lengths").inc()
        return list(found.values())
    for step, length in zip(found.values(), lengths, strict=True):
        step.in_redis = length
    return list(found.values())
