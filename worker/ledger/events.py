"""What happened to jobs: read by job, or all of it by what a reader has seen, so that nothing that commits late is skipped.

The rows are written by triggers, in the transaction of the change they tell of.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

import psycopg

from worker.errors import InvalidPosition

#: Of which jobs events are written: of none, of those that have a caller, of all.
Level = Literal["off", "callers", "all"]

_COLUMNS = "id, job_id, task, queue, caller, key, state, attempt, at, detail"

#: One job's changes are made one after the other, each behind the lock of its row: its ids rise in the order of the commits.
_OF_JOB = f"SELECT {_COLUMNS} FROM job_events WHERE job_id = %(job_id)s AND id > %(after_id)s ORDER BY id LIMIT %(limit)s"

#: What a snapshot did not show and a later one does: the transactions that ran at the time of the first, and those begun since.
#: The order by transaction makes pages of it. Two scans, each by the index, however long a transaction has been running.
_PAGE = f"""
SELECT xid::text, until::text, {_COLUMNS} FROM (
  SELECT * FROM ((
    SELECT * FROM job_events, until
     WHERE xid = ANY(ARRAY(SELECT pg_snapshot_xip(%(seen)s::pg_snapshot))) AND pg_visible_in_snapshot(xid, until)
       AND (xid, id) > (%(xid)s::xid8, %(id)s::int8)
     ORDER BY xid, id LIMIT %(limit)s)
  UNION ALL (
    SELECT * FROM job_events, until
     WHERE xid >= pg_snapshot_xmax(%(seen)s::pg_snapshot) AND pg_visible_in_snapshot(xid, until)
       AND (xid, id) > (%(xid)s::xid8, %(id)s::int8)
     ORDER BY xid, id LIMIT %(limit)s)) AS both_parts
  ORDER BY xid, id LIMIT %(limit)s) AS page
ORDER BY page.xid, page.id
"""
_UNTIL = "WITH until AS MATERIALIZED (SELECT coalesce(%(until)s::pg_snapshot, pg_current_snapshot()) AS until)"

_NOW = "SELECT pg_current_snapshot()::text"
_AHEAD = "SELECT pg_snapshot_xmax(%s::pg_snapshot) > pg_snapshot_xmax(pg_current_snapshot())"
#: The first transaction that wrote an event at a moment or later; all that are before it have been seen.
_SINCE = "SELECT min(xid)::text FROM job_events WHERE at >= %s"

_HELD = "SELECT pg_try_advisory_xact_lock(hashtextextended('holdfast events ' || %s, 0))"
_READER = "SELECT position FROM event_readers WHERE name = %s"
_REMEMBER = """
INSERT INTO event_readers (name, position) VALUES (%s, %s)
ON CONFLICT (name) DO UPDATE SET position = excluded.position, updated_at = clock_timestamp()
"""
_PRUNE = "DELETE FROM job_events WHERE at < statement_timestamp() - %s * interval '1 day'"

_TRIGGERS = {"job_event_accepted": "jobs", "job_event_changed": "jobs", "job_event_ended": "job_history"}
_ENABLED = """
SELECT bool_or(tgenabled <> 'D') FILTER (WHERE tgname = 'job_event_accepted'),
       bool_or(tgenabled <> 'D') FILTER (WHERE tgname = 'job_event_accepted_all')
  FROM pg_trigger WHERE tgrelid = 'jobs'::regclass
"""

_SNAPSHOT = re.compile(r"[0-9]+:[0-9]+:[0-9,]*")
#: Before every transaction.
_NOTHING = "3:3:"


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a job's state. `key` is the idempotency key it was accepted with, `detail` the error if there is one."""

    id: int
    job_id: str
    task: str
    queue: str
    caller: str | None
    key: str | None
    state: str
    attempt: int
    at: datetime
    detail: str | None


@dataclass(frozen=True, slots=True)
class Position:
    """How far a reader of all events has come: what it has seen whole, and within what came after that, the last it read."""

    seen: str = _NOTHING
    until: str | None = None
    xid: str = "0"
    id: int = 0

    def __str__(self) -> str:
        return self.seen if self.until is None else f"{self.seen}/{self.until}/{self.xid}/{self.id}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Return the position a text stands for. Raises `InvalidPosition`."""
        seen, *rest = text.split("/")
        sound = _SNAPSHOT.fullmatch(seen) and (
            not rest or (len(rest) == 3 and _SNAPSHOT.fullmatch(rest[0]) and rest[1].isdigit() and rest[2].isdigit())
        )
        if not sound:
            raise InvalidPosition(f"{text!r} is not a position in the events; take the `position` of an event that was read")
        return cls(seen, rest[0], rest[1], int(rest[2])) if rest else cls(seen)


def events_after(conn: psycopg.Connection[Any], *, job_id: str, after_id: int = 0, limit: int = 500) -> list[Event]:
    """Return a job's events behind the one with this id, in the order in which they happened."""
    rows = conn.execute(_OF_JOB, {"job_id": job_id, "after_id": after_id, "limit": limit}).fetchall()
    return [Event(*row) for row in rows]


def events_since(conn: psycopg.Connection[Any], position: Position, *, limit: int = 500) -> list[tuple[Event, Position]]:
    """Return the events of all jobs that a reader at this position has not read, each with the position behind it.

    An event whose transaction commits late comes late; none is left out. Of one job's, the greater id happened later.
    """
    values = {"seen": position.seen, "until": position.until, "xid": position.xid, "id": position.id, "limit": limit}
    rows = conn.execute(_UNTIL + _PAGE, values).fetchall()
    if not rows and position.until is not None:  # the rest of that page; what came since follows
        return events_since(conn, Position(position.until), limit=limit)
    found = [(Event(*row[2:]), Position(position.seen, row[1], row[0], row[2])) for row in rows]
    if found and len(found) < limit:  # that was all of it
        event, last = found[-1]
        found[-1] = event, Position(last.until or position.seen)
    return found


def beginning() -> Position:
    """Return the position before the oldest event that is kept."""
    return Position()


def end(conn: psycopg.Connection[Any]) -> Position:
    """Return the position behind everything that has committed by now."""
    row = conn.execute(_NOW).fetchone()
    assert row is not None
    return Position(row[0])


def position_at(conn: psycopg.Connection[Any], moment: datetime) -> Position:
    """Return a position from which everything is read that happened at a moment or later, and perhaps a little before it."""
    row = conn.execute(_SINCE, (moment,)).fetchone()
    if row is None or row[0] is None:
        return end(conn)
    return Position(f"{row[0]}:{row[0]}:")


def check_position(conn: psycopg.Connection[Any], position: Position) -> None:
    """Raise `InvalidPosition` for one that lies ahead: of another database, or of this one before it was restored from a dump."""
    row = conn.execute(_AHEAD, (position.seen,)).fetchone()
    if row is None or row[0]:
        raise InvalidPosition(f"position {str(position)!r} lies ahead of this database; read on from a moment instead")


# ---- readers that are remembered


def try_reader(conn: psycopg.Connection[Any], name: str) -> Position | None:
    """Return where the reader of this name stands, held until the transaction ends; None while another holds it.

    A new one stands at the beginning of what is kept.
    """
    row = conn.execute(_HELD, (name,)).fetchone()
    if row is None or not row[0]:
        return None
    found = conn.execute(_READER, (name,)).fetchone()
    return Position.parse(found[0]) if found else beginning()


def remember(conn: psycopg.Connection[Any], name: str, position: Position) -> None:
    """Note where a reader stands; the caller commits."""
    conn.execute(_REMEMBER, (name, str(position)))


def prune(conn: psycopg.Connection[Any], days: int) -> int:
    """Delete the events that are older, read or not, and return how many."""
    return conn.execute(_PRUNE, (days,)).rowcount


# ---- whether they are written


def level(conn: psycopg.Connection[Any]) -> Level:
    """Return of which jobs events are written."""
    row = conn.execute(_ENABLED).fetchone()
    assert row is not None
    if row[1]:
        return "all"
    return "callers" if row[0] else "off"


def set_level(conn: psycopg.Connection[Any], wanted: str) -> None:
    """Write events of these jobs from now on, whoever writes the jobs. Raises `ValueError` for a level there is not.

    It is a switch of the database, not of a process: no two writers can differ. It waits for the transactions that write jobs,
    five seconds at the most (then `LockNotAvailable`), and they wait for it.
    """
    if wanted not in get_args(Level):
        raise ValueError(f"{wanted!r} is not a level of events; levels are {', '.join(get_args(Level))}")
    with conn.transaction():
        conn.execute("SET LOCAL lock_timeout = '5s'")
        for name, table in _TRIGGERS.items():
            for suffix, is_on in (("", wanted != "off"), ("_all", wanted == "all")):
                conn.execute(f"ALTER TABLE {table} {'ENABLE' if is_on else 'DISABLE'} TRIGGER {name}{suffix}")
