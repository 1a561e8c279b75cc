"""The deliveries of callbacks as jobs: in which order they go, and how they are found by the job they tell of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from worker.errors import InvalidJob, JobNotFound
from worker.ledger import manage
from worker.ledger.manage import Filter

#: The task of a delivery. The trigger that makes them is in the migration of the SQL door.
TASK = "webhook.deliver"

#: Whose it is, how old, in how many seconds the oldest one of the same job is due that is still to go before it, and where that
#: job is to be told of.
_TURN = """
SELECT me.caller, extract(epoch FROM clock_timestamp() - me.created_at)::float8,
       (SELECT greatest(extract(epoch FROM first.available_at - clock_timestamp()), 0)::float8 FROM jobs first
         WHERE first.task = 'webhook.deliver' AND first.parent_id = me.parent_id AND first.id <> me.id
           AND (first.created_at, first.id) < (me.created_at, me.id)
         ORDER BY first.created_at, first.id LIMIT 1),
       (SELECT callback_url FROM (SELECT id, callback_url FROM jobs UNION ALL SELECT id, callback_url FROM job_history) AS told
         WHERE told.id = me.parent_id LIMIT 1)
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

#: What a delivery's row says by the names it is told under.
_SAME = ("id", "state", "caller", "attempt", "error", "created_at", "available_at", "finished_at")


@dataclass(frozen=True, slots=True)
class Turn:
    """Where a delivery stands: whose job it tells of, its age, the seconds until one is due that must go before it, and the
    callback URL of the job it tells of, None where there is no such job."""

    caller: str | None
    age_s: float
    before_s: float | None
    callback_url: str | None


def turn(conn: psycopg.Connection[Any], delivery_id: str) -> Turn:
    """Return where a living delivery stands."""
    row = conn.execute(_TURN, (delivery_id,)).fetchone()
    return Turn(*row) if row else Turn(None, 0.0, None, None)


def deliveries_of(conn: psycopg.Connection[Any], job_id: str) -> list[str]:
    """Return the ids of the deliveries that tell of a job's ends."""
    return [row[0] for row in conn.execute(_OF_JOB, {"job": job_id}).fetchall()]


def among(which: Filter) -> Filter:
    """Return the filter that narrows to deliveries."""
    return replace(which, task=TASK)


def show(conn: psycopg.Connection[Any], delivery_id: str) -> dict[str, Any]:
    """Return a delivery's record. Raises `JobNotFound` also for a job that is none."""
    found = manage.show(conn, delivery_id.replace("\0", "\\0"))
    if found["task"] != TASK:
        raise JobNotFound(f"job {delivery_id} is no delivery of a callback; see `holdfast webhooks ls`")
    return found


def redeliver(conn: psycopg.Connection[Any], delivery_id: str) -> str:
    """Deliver again, now, under the same webhook-id, and tell how: `due now` or `queued again`.

    Raises `JobNotFound`, and `InvalidJob` for one that is under way.
    """
    if show(conn, delivery_id)["state"] in ("scheduled", "queued", "running"):
        if manage.retry_now(conn, delivery_id):
            return "due now"
        raise InvalidJob(f"delivery {delivery_id} is under way")
    manage.replay(conn, delivery_id)
    return "queued again"


def told(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what people want to know of a delivery's record: which job's end it tells, to whom, and how it went."""
    kwargs = _kwargs(row)
    return {
        **{name: row.get(name) for name in _SAME},
        "job": row.get("parent_id"), "type": kwargs["type"], "url": kwargs["url"], "host": kwargs["host"],
        "payload": kwargs["payload"], "result": row.get("result"),
    }  # fmt: skip


def _kwargs(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a delivery was given. Somebody who writes SQL may have made it of anything."""
    try:
        kwargs = json.loads(row["message"]["body"])[1]
        return {**{name: str(kwargs[name]) for name in ("url", "host", "payload")}, "type": json.loads(kwargs["payload"])["type"]}
    except (LookupError, TypeError, ValueError):
        return dict.fromkeys(("url", "host", "payload", "type"), "")
