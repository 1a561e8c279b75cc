"""What people do with jobs and queues: list, cancel, retry, replay, pause."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.types.datetime import TimestamptzLoader

from worker.cache import outbox
from worker.clock import parse_moment
from worker.errors import InvalidJob, JobNotFound, StoreUnavailable
from worker.ledger import results
from worker.ledger.adopt import LOCK_ENTRY
from worker.ledger.queues import forget_settings, queue_settings
from worker.settings import settings
from worker.states import HISTORY_COLUMNS
from worker.store import cache, coordination, keys
from worker.telemetry import OUTAGES

_REQUEST_CANCEL = "UPDATE jobs SET cancel_requested = true WHERE id = %s AND state = 'running'"

_LISTED = ("id", "task", "queue", "priority", "state", "args", "kwargs", "attempt", "crashes", "caller", "progress", "error",
           "created_at", "available_at", "started_at")  # fmt: skip
#: A job stands in the list at the moment it ended, or was accepted if it has not; the id decides between equal moments. Each
#: table is read in its own order that way, and the partitions of later days are left out of a later page.
_LIVING = f"""
(SELECT {', '.join(_LISTED)}, NULL::timestamptz AS finished_at, created_at AS at FROM jobs
  WHERE {{where}} AND {{living_page}} ORDER BY created_at DESC, id DESC LIMIT %(limit)s)
"""
_PAST = f"""
(SELECT {', '.join(_LISTED)}, finished_at, finished_at AS at FROM job_history
  WHERE {{where}} AND {{past_page}} ORDER BY finished_at DESC, id DESC LIMIT %(limit)s)
"""
#: The first half says what the second implies; partitions are left out by it.
_AFTER = "{column} <= %(at)s::timestamptz AND ({column}, id) < (%(at)s::timestamptz, %(after)s)"

_NO_LONGER = "SELECT set_config('statement_timeout', %s, true)"

_SELECT_LIVING = "SELECT id FROM jobs WHERE {where} ORDER BY created_at, id LIMIT %(limit)s"
#: Only what became of a job last counts: one that failed, was replayed and succeeded has not failed.
_SELECT_PAST = """
SELECT id FROM job_history h WHERE {where}
   AND NOT EXISTS (SELECT FROM jobs j WHERE j.id = h.id)
   AND NOT EXISTS (SELECT FROM job_history later WHERE later.id = h.id AND later.finished_at > h.finished_at)
 ORDER BY created_at, id LIMIT %(limit)s
"""

_WORKER_NAME = "(SELECT n.name FROM worker_nodes n WHERE n.id = worker_id) AS worker"
_SHOW_LIVING = f"SELECT *, {_WORKER_NAME} FROM jobs WHERE id = %s"
_SHOW_PAST = f"SELECT *, {_WORKER_NAME} FROM job_history WHERE id = %s ORDER BY finished_at DESC LIMIT 1"
_ATTEMPTS = f"""
SELECT attempt, worker_id, {_WORKER_NAME}, started_at, ended_at, outcome, error, traceback
  FROM attempts WHERE job_id = %s ORDER BY attempt
"""

#: A job that waits runs now.
_HASTEN = """
UPDATE jobs SET state = 'queued', available_at = clock_timestamp(), dispatch_epoch = NULL, dispatched_at = NULL
 WHERE id = %s AND state = 'scheduled' AND available_at < '9000-01-01 00:00+00' RETURNING id
"""
_COLUMNS = ", ".join(c for c in HISTORY_COLUMNS if c not in ("available_at", "started_at", "claimed_at", "worker_id", "progress",
                                                            "crashes", "attempt", "revision", "expires_at"))  # fmt: skip
#: A job of the past lives again under its own id: its effects on record are not repeated. Its attempts count on.
_REPLAY = f"""
INSERT INTO jobs ({_COLUMNS}, state, attempt, revision)
SELECT {_COLUMNS}, 'queued', attempt, revision + 1 FROM job_history WHERE id = %s ORDER BY finished_at DESC LIMIT 1
ON CONFLICT (id) DO NOTHING RETURNING id
"""
_RAW = "SELECT message ->> 'raw' FROM job_history WHERE id = %s ORDER BY finished_at DESC LIMIT 1"
_DROP_RAW = "DELETE FROM job_history WHERE id = %s"

_PAUSE = """
INSERT INTO queues (name, paused) VALUES (%(name)s, %(paused)s)
ON CONFLICT (name) DO UPDATE SET paused = excluded.paused, updated_at = clock_timestamp()
"""
#: What was sent to a paused queue is dropped by the claim; this makes it due again when the queue is resumed.
_UNSEND = """
UPDATE jobs SET dispatch_epoch = NULL, dispatched_at = NULL WHERE queue = %s AND state = 'queued' AND dispatch_epoch IS NOT NULL
"""
_QUEUE_COUNTS = """
SELECT queue, count(*) FILTER (WHERE state = 'scheduled') AS scheduled,
       count(*) FILTER (WHERE state = 'queued' AND dispatch_epoch IS NULL) AS backlog,
       count(*) FILTER (WHERE state = 'queued' AND dispatch_epoch IS NOT NULL) AS sent,
       count(*) FILTER (WHERE state = 'running') AS running,
       min(available_at) FILTER (WHERE state = 'queued') AS oldest
  FROM jobs GROUP BY queue
"""

#: Seconds for which a job's old result is kept out once the job lives again; who fills it in has read it long before.
_HIDDEN_S = 60
#: What the outbox owes when Redis was away as a job was replayed. Done late, even after the job has ended anew, it does no harm:
#: until it is over the job's row is asked.
_HIDE = ":hide:"

#: A day within the ends of Python's calendar, for every time zone to have a word for them.
_FIRST, _LAST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs are meant; a field that is None does not narrow."""

    states: Sequence[str] | None = None
    task: str | None = None
    queue: str | None = None
    caller: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    search: str | None = None

    def where(self) -> tuple[str, dict[str, Any]]:
        """Return the SQL condition and its parameters."""
        parts = {
            "states": "state = ANY(%(states)s)", "task": "task = %(task)s", "queue": "queue = %(queue)s",
            "caller": "caller = %(caller)s",
            "since": "created_at >= %(since)s", "until": "created_at < %(until)s",
            "search": "position(%(search)s in id || ' ' || args || ' ' || kwargs) > 0",
        }  # fmt: skip
        given = {name: getattr(self, name) for name in parts if getattr(self, name) is not None}
        return " AND ".join(parts[name] for name in given) or "true", given


def request_cancel(conn: psycopg.Connection[Any], job_id: str) -> bool:
    """Ask a running job to stop, which it sees in `self.cancelled`; tell whether it runs."""
    return conn.execute(_REQUEST_CANCEL, (job_id,)).rowcount > 0


def list_jobs_within(conn: psycopg.Connection[Any], seconds: float, which: Filter, **page: Any) -> list[dict[str, Any]]:
    """Return what `list_jobs` does, if that takes no longer. Raises `psycopg.errors.QueryCanceled` otherwise."""
    with conn.transaction():
        conn.execute(_NO_LONGER, (f"{round(seconds * 1000)}ms",))
        return list_jobs(conn, which, **page)


def list_jobs(
    conn: psycopg.Connection[Any], which: Filter, *, limit: int = 50, before: str | None = None
) -> list[dict[str, Any]]:
    """Return jobs, living and past, the newest first by when they ended or, living, were accepted.

    Each has a `cursor`; as `before` it asks for what follows that job. Raises `ValueError` for a text that is no cursor.
    """
    where, values = which.where()
    living_page = past_page = "true"
    if before is not None:
        values = {**values, **_read_cursor(before)}
        living_page, past_page = (_AFTER.format(column=column) for column in ("created_at", "finished_at"))
    if which.since is not None:  # Who was accepted since then has not ended before; so that older partitions are not read.
        past_page += " AND finished_at >= %(since)s"
    parts = [part.format(where=where, living_page=living_page, past_page=past_page) for part in (_LIVING, _PAST)]
    sql = f"{' UNION ALL '.join(parts)} ORDER BY at DESC, id DESC LIMIT %(limit)s"
    rows = rows_of(conn, sql, {**values, "limit": limit})
    return [{**row, "cursor": f"{row.pop('at').astimezone(UTC).isoformat()}~{row['id']}"} for row in rows]


def _read_cursor(text: str) -> dict[str, Any]:
    moment, sep, job_id = text.partition("~")
    try:
        if sep and job_id:
            return {"at": parse_moment(moment), "after": job_id}
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not a cursor; take the `cursor` of a listed job")


def select_ids(conn: psycopg.Connection[Any], which: Filter, *, living: bool, limit: int = 100_000) -> list[str]:
    """Return the ids of the living or of the past jobs that are meant."""
    where, values = which.where()
    sql = (_SELECT_LIVING if living else _SELECT_PAST).format(where=where)
    return [row[0] for row in conn.execute(sql, {**values, "limit": limit}).fetchall()]


def show(conn: psycopg.Connection[Any], job_id: str) -> dict[str, Any]:
    """Return all that is known of a job, with its `attempts`. Raises `JobNotFound`."""
    found = rows_of(conn, _SHOW_LIVING, (job_id,)) or rows_of(conn, _SHOW_PAST, (job_id,))
    if not found:
        raise JobNotFound(f"no job {job_id!r}, living or past", job_id=job_id)
    return {**found[0], "attempts": rows_of(conn, _ATTEMPTS, (job_id,))}


def retry_now(conn: psycopg.Connection[Any], job_id: str) -> bool:
    """Let a job that waits for its time run at once; tell whether it did wait."""
    return conn.execute(_HASTEN, (job_id,)).fetchone() is not None


def replay(conn: psycopg.Connection[Any], job_id: str) -> None:
    """Let a job of the past live again under its id; one that was set aside unread is put back for adoption.

    Raises `JobNotFound`, and `InvalidJob` when the job is alive.
    """
    row = conn.execute(_RAW, (job_id,)).fetchone()
    if row is None:
        show(conn, job_id)
        raise InvalidJob(f"job {job_id!r} is not finished; there is nothing to replay", job_id=job_id)
    if row[0] is not None:
        with conn.transaction(), coordination().use() as client:
            # Until this commits, adoption waits to set the message aside again: it would find it known, and drop it.
            conn.execute(LOCK_ENTRY, (job_id,))
            client.lpush(settings().foreign_queue, base64.b64decode(row[0]))
            conn.execute(_DROP_RAW, (job_id,))
        return
    with outbox.transaction(conn) as changes:
        if conn.execute(_REPLAY, (job_id,)).fetchone() is None:
            raise InvalidJob(f"job {job_id!r} lives again already", job_id=job_id)
        changes.add(keys=[results.status.key(job_id)])
        if not _hide_result(job_id):
            changes.add(keys=[_HIDE + job_id])


def _hide_result(job_id: str) -> bool:
    """Put a word in the place of a job's old result, before the job lives again; tell whether Redis took it.

    Deleted, the place would be free for whoever has just read the old result in Postgres and is about to fill it in: it would
    stand there until the job ends anew. Its row is asked while this stands, and tells the same in the end.
    """
    told: dict[str, Any] = {"status": "PENDING", "result": None, "traceback": None, "children": [], "task_id": job_id}
    try:
        with cache().use() as client:
            client.set(keys.result(job_id), json.dumps(told), ex=_HIDDEN_S)
    except StoreUnavailable:
        OUTAGES.labels("results", "not hidden").inc()
        return False
    return True


outbox.owe_also(_HIDE, _hide_result)


def set_paused(conn: psycopg.Connection[Any], queue: str, paused: bool) -> None:
    """Pause a queue, so that none of its waiting jobs starts, also those sent already; or resume it."""
    with outbox.transaction(conn) as changes:
        conn.execute(_PAUSE, {"name": queue, "paused": paused})
        conn.execute(_UNSEND, (queue,))
        forget_settings(changes)


def list_queues(conn: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    """Return each configured, used or paused queue with its counts, window and messages `in_redis` (None when Redis is away)."""
    counts = {row["queue"]: row for row in rows_of(conn, _QUEUE_COUNTS)}
    kept = {row["name"]: row for row in queue_settings()}
    empty = {"scheduled": 0, "backlog": 0, "sent": 0, "running": 0, "oldest": None}
    names = sorted({*settings().queues, *counts, *kept})
    lengths = _lengths(names)
    return [
        {
            "queue": name, **{k: counts.get(name, empty)[k] for k in empty}, "in_redis": lengths.get(name),
            "paused": name in kept and kept[name]["paused"],
            "window": (kept[name]["window"] if name in kept else None) or settings().window,
        }
        for name in names
    ]  # fmt: skip


def _lengths(queues: list[str]) -> dict[str, int]:
    try:
        with coordination().use() as client:
            pipe = client.pipeline(transaction=False)
            for name in queues:
                for key in keys.queue_lists(name):
                    pipe.llen(key)
            lengths = pipe.execute()
    except StoreUnavailable:
        OUTAGES.labels("queue list", "without lengths").inc()
        return {}
    step = len(keys.PRIORITY_STEPS)
    return {name: sum(lengths[at * step : (at + 1) * step]) for at, name in enumerate(queues)}


def list_workers(conn: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    """Return the workers, those that left within a day included, with the jobs each runs."""
    return rows_of(conn, _WORKERS)


_WORKERS = """
SELECT n.id::text, n.name, n.host, n.pid, n.queues, n.started_at, n.beat_at, n.left_at,
       extract(epoch FROM clock_timestamp() - n.beat_at)::float8 AS silent_s,
       (SELECT count(*) FROM jobs j WHERE j.worker_id = n.id AND j.state = 'running') AS running
  FROM worker_nodes n ORDER BY n.left_at NULLS FIRST, n.name
"""


class _AnyMoment(TimestamptzLoader):
    """Reads the moments that Python has no word for, as rows written by SQL may hold, as the first or the last it has."""

    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            text = bytes(data)
            return _FIRST if text.startswith(b"-") or text.endswith(b"BC") else _LAST


def rows_of(conn: psycopg.Connection[Any], sql: str, values: Any = None, *, prepare: bool | None = None) -> list[dict[str, Any]]:
    """Return the rows of a query by column; a moment that Python has no word for is the first or the last that it has.

    With `prepare` False it is planned anew, for these values.
    """
    cursor = conn.cursor()
    cursor.adapters.register_loader("timestamptz", _AnyMoment)
    cursor.execute(sql, values, prepare=prepare)
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


