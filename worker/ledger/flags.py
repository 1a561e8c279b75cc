"""Flags on record: who set which, and the switches among them, which hold jobs back."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from worker.db import statement
from worker.errors import FlagNotFound, InvalidLive
from worker.ledger.message import DOOR
from worker.live import Feed, Flag, Snapshot, flag, nudge
from worker.telemetry import log

logger = log(__name__)

#: Changes are made one at a time, so that their ids become visible in order: who has seen one has seen all before it.
_LOCK = "SELECT pg_advisory_xact_lock(4710922318)"
_VERSION = "SELECT coalesce(max(id), 0) FROM flag_changes"
_RULES = """
SELECT (SELECT coalesce(max(id), 0) FROM flag_changes), f.name, f.is_on, f.share, f.allow, f.deny, f.revision
  FROM (SELECT) AS always LEFT JOIN flags f ON true
"""
_OLD = "SELECT is_on, share, allow, deny FROM flags WHERE name = %s"
_CHANGE = """
INSERT INTO flag_changes (name, actor, before, after, note)
VALUES (%(name)s, %(actor)s, %(before)s, %(after)s, %(note)s) RETURNING id
"""
_PUT = """
INSERT INTO flags (name, is_on, share, allow, deny, note, revision)
VALUES (%(name)s, %(on)s, %(share)s, %(allow)s, %(deny)s, %(note)s, %(revision)s)
ON CONFLICT (name) DO UPDATE
   SET is_on = excluded.is_on, share = excluded.share, allow = excluded.allow, deny = excluded.deny, note = excluded.note,
       revision = excluded.revision, updated_at = clock_timestamp()
"""
_REMOVE = "DELETE FROM flags WHERE name = %s"
_LIST = """
SELECT f.name, f.is_on, f.share, f.allow, f.deny, f.note, f.revision, f.updated_at, c.actor
  FROM flags f LEFT JOIN flag_changes c ON c.id = f.revision ORDER BY f.name
"""
_HISTORY = """
SELECT id, name, actor, before, after, note, changed_at FROM flag_changes
 WHERE %(name)s::text IS NULL OR name = %(name)s ORDER BY id DESC LIMIT %(limit)s
"""

#: A held job is scheduled, under a mark in the place of the broker's epoch: so no index of what is due or sent has it.
_HELD = "dispatch_epoch IS NOT NULL AND state = 'scheduled'"
_PARK = """
UPDATE jobs SET state = 'scheduled', dispatch_epoch = %(mark)s, dispatched_at = NULL
 WHERE id = %(id)s AND revision = %(revision)s AND state = 'queued' RETURNING id
"""
_PARK_UNSENT = """
UPDATE jobs SET state = 'scheduled', dispatch_epoch = %(mark)s, dispatched_at = NULL
 WHERE id = ANY(%(ids)s) AND dispatch_epoch = %(epoch)s AND state = 'queued'
"""
_UNPARK = f"""
UPDATE jobs SET dispatch_epoch = NULL
 WHERE id = ANY(ARRAY(SELECT id FROM jobs WHERE {_HELD} AND dispatch_epoch = %(mark)s LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
RETURNING id
"""
#: Hops from mark to mark over the index, so the cost is that of the flags, not of the jobs they hold.
_MARKS = f"""
WITH RECURSIVE hop AS (
  (SELECT dispatch_epoch AS mark FROM jobs WHERE {_HELD} ORDER BY dispatch_epoch LIMIT 1)
  UNION ALL
  SELECT (SELECT j.dispatch_epoch FROM jobs j WHERE j.dispatch_epoch IS NOT NULL AND j.state = 'scheduled'
             AND j.dispatch_epoch > hop.mark ORDER BY j.dispatch_epoch LIMIT 1)
    FROM hop WHERE hop.mark IS NOT NULL)
SELECT mark FROM hop WHERE mark IS NOT NULL
"""
_COUNTS = f"SELECT dispatch_epoch, count(*) FROM jobs WHERE {_HELD} GROUP BY dispatch_epoch"
_CALLERS = "SELECT id, caller FROM jobs WHERE id = ANY(%s)"

_MARK = "parked:"
#: Held jobs that one round makes due again.
BATCH = 2000

#: What a flag must be called to be a switch: one of these, a colon, and the name of the task, queue, caller or door.
KINDS = ("task", "queue", "caller", "door")
_PREFIXES = tuple(f"{kind}:" for kind in KINDS)


# ---- the record


def put(conn: psycopg.Connection[Any], rule: Flag, *, actor: str, note: str = "") -> Flag:
    """Set a flag, new or in the place of the one with its name, and return it with its revision.

    It holds in every process within a second of the commit. Raises `LedgerUnavailable`.
    """
    with conn.transaction():
        conn.execute(_LOCK)
        revision = _log(conn, rule.name, actor, _old(conn, rule.name), rule.plain(), note)
        plain = rule.plain()
        conn.execute(_PUT, {**plain, "name": rule.name, "allow": Jsonb(plain["allow"]), "deny": Jsonb(plain["deny"]),
                            "note": note, "revision": revision})  # fmt: skip
    nudge()
    return flag(rule.name, **rule.plain(), revision=revision)


def remove(conn: psycopg.Connection[Any], name: str, *, actor: str, note: str = "") -> None:
    """Remove a flag; what it held back is due again. Raises `FlagNotFound`."""
    with conn.transaction():
        conn.execute(_LOCK)
        old = _old(conn, name)
        if old is None:
            raise FlagNotFound(f"no flag {name!r} is set; see `holdfast flags ls`", name=name)
        _log(conn, name, actor, old, None, note)
        conn.execute(_REMOVE, (name,))
    nudge()


def _old(conn: psycopg.Connection[Any], name: str) -> dict[str, Any] | None:
    row = conn.execute(_OLD, (name.replace("\0", "\\0"),)).fetchone()
    return row and dict(zip(("on", "share", "allow", "deny"), row, strict=True))


def _log(
    conn: psycopg.Connection[Any], name: str, actor: str, before: dict[str, Any] | None, after: dict[str, Any] | None, note: str
) -> int:
    values = {"name": name, "actor": actor, "note": note, "before": before and Jsonb(before), "after": after and Jsonb(after)}
    row = conn.execute(_CHANGE, values).fetchone()
    assert row is not None
    return int(row[0])


def listed(conn: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    """Return all flags by name, each with its rule in words, who set it last, and how many jobs it holds back by now."""
    held = {mark.split(":", 2)[2]: count for mark, count in conn.execute(_COUNTS).fetchall() if mark.startswith(_MARK)}
    names = ("name", "on", "share", "allow", "deny", "note", "revision", "updated_at", "actor")
    rows = [dict(zip(names, row, strict=True)) for row in conn.execute(_LIST).fetchall()]
    return [{**row, "rule": told(row["name"], row), "parked": held.get(row["name"], 0)} for row in rows]


def told(name: str, rule: Mapping[str, Any] | None) -> str:
    """Return a rule in words, as `listed` and `history` hold it; `none` for one that is not set."""
    if rule is None:
        return "none"
    found = _readable({"name": name, **{part: rule[part] for part in ("on", "share", "allow", "deny") if part in rule}})
    return "cannot be read" if found is None else str(found)


def get(conn: psycopg.Connection[Any], name: str) -> dict[str, Any] | None:
    """Return a flag as `listed` does; None for one that nobody set."""
    return next((row for row in listed(conn) if row["name"] == name), None)


def history(conn: psycopg.Connection[Any], name: str | None = None, *, limit: int = 100) -> list[dict[str, Any]]:
    """Return the changes of a flag, or of all, newest first."""
    names = ("id", "name", "actor", "before", "after", "note", "changed_at")
    return [dict(zip(names, row, strict=True)) for row in conn.execute(_HISTORY, {"name": name, "limit": limit}).fetchall()]


# ---- what this process knows


_feed: Feed | None = None
_beginning = threading.Lock()


def feed() -> Feed:
    """Return the flags of this process, which a thread keeps current from the first call on."""
    global _feed
    if _feed is None:
        with _beginning:
            if _feed is None:
                _feed = Feed(_look)
    return _feed


def forget() -> None:
    """Let this process begin anew with its flags."""
    global _feed
    if _feed is not None:
        _feed.close()
    _feed = None


def _after_fork() -> None:
    """Let the child begin with a thread of its own; another of the parent may have held the lock."""
    global _feed, _beginning
    _feed, _beginning = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _look(known: int) -> Snapshot | None:
    with statement(passing=True) as conn:
        return _newer(conn, known)


def _newer(conn: psycopg.Connection[Any], known: int) -> Snapshot | None:
    row = conn.execute(_VERSION).fetchone()
    if row is not None and row[0] == known:
        return None
    rows = conn.execute(_RULES).fetchall()
    given = [dict(zip(("name", "on", "share", "allow", "deny", "revision"), row[1:], strict=True)) for row in rows]
    rules = [rule for row in given if row["name"] is not None and (rule := _readable(row)) is not None]
    return Snapshot(rows[0][0], {rule.name: rule for rule in rules})


def _readable(row: Mapping[str, Any]) -> Flag | None:
    """Return the rule of a row; one that somebody wrote by hand and wrongly must not hold up the others."""
    try:
        return flag(**row)
    except (InvalidLive, AttributeError, TypeError) as exc:
        logger.error("a flag cannot be read and is taken for none", flag=row["name"], error=str(exc))
        return None


def is_on(name: str, key: str = "", *, default: bool = False, **attributes: str | None) -> bool:
    """Tell whether a flag is on for a key and attributes, by what this process knows; one nobody set is as `default` says.

        if flags.is_on("new-report", user_id, caller="acme"): ...

    **Guarantee:** it never waits for a server after the first call, and a change is seen within a second by every process that
    reaches Postgres; others go by the last flags they saw.
    """
    return feed().snapshot.is_on(name, key, default=default, **attributes)


# ---- switches


@dataclass(frozen=True, slots=True)
class Switches:
    """The flags of a snapshot that may hold jobs back."""

    rules: Mapping[str, Flag]
    #: Whether one of them asks for a job's caller, which its message does not tell.
    need_callers: bool

    def mark_of(self, job: Held) -> str | None:
        """Return the mark of the first switch that holds a job back, None when it may run."""
        names = (f"task:{job.task}", f"queue:{job.queue}", f"caller:{job.caller}", f"door:{job.door}")
        known: dict[str, str | None] | None = None
        for name in names:
            rule = self.rules.get(name)
            if rule is None:
                continue
            known = known or {"task": job.task, "queue": job.queue, "caller": job.caller, "door": job.door}
            if not rule.is_on(job.id, known):
                return f"{_MARK}{rule.revision}:{rule.name}"
        return None


@dataclass(frozen=True, slots=True)
class Held:
    """What switches look at of a job."""

    id: str
    task: str
    queue: str
    caller: str | None = None
    door: str | None = None


def _switches_of(snapshot: Snapshot) -> Switches | None:
    found = {name: rule for name, rule in snapshot.flags.items() if rule.restricts and name.startswith(_PREFIXES)}
    if not found:
        return None
    return Switches(found, any(name.startswith("caller:") or "caller" in rule.attributes for name, rule in found.items()))


_last: tuple[Snapshot | None, Switches | None] = (None, None)


def switches() -> Switches | None:
    """Return the switches that may hold jobs back by what this process knows; None, and at once, where none does."""
    global _last
    snapshot = feed().snapshot
    seen, found = _last
    if seen is not snapshot:
        found = _switches_of(snapshot)
        _last = (snapshot, found)
    return found


def is_queue_off(queue: str) -> bool:
    """Tell whether a queue is switched off whoever asks: then nothing of it need be looked at."""
    found = switches()
    rule = found.rules.get(f"queue:{queue}") if found else None
    return rule is not None and rule.is_off_for_all


def marks_of(conn: psycopg.Connection[Any], found: Switches, jobs: Sequence[Held]) -> dict[str, str]:
    """Return the marks of those jobs that a switch holds back, by id; who called is looked up where a switch asks for it."""
    if found.need_callers:
        callers = dict(conn.execute(_CALLERS, ([job.id for job in jobs],)).fetchall())
        jobs = [Held(job.id, job.task, job.queue, callers.get(job.id), job.door) for job in jobs]
    return {job.id: mark for job in jobs if (mark := found.mark_of(job)) is not None}


def park(conn: psycopg.Connection[Any], job_id: str, revision: int, mark: str) -> bool:
    """Hold a job back that was sent, without an attempt, in its place among those that wait; tell whether it was not claimed."""
    return conn.execute(_PARK, {"id": job_id, "revision": revision, "mark": mark}).fetchone() is not None


def park_unsent(conn: psycopg.Connection[Any], marks: Mapping[str, str], epoch: str) -> None:
    """Hold back jobs that were marked as sent under this epoch and were not, each under its mark."""
    by_mark = defaultdict(list)
    for job_id, mark in marks.items():
        by_mark[mark].append(job_id)
    for mark, ids in by_mark.items():
        conn.execute(_PARK_UNSENT, {"mark": mark, "ids": ids, "epoch": epoch})


def try_park(job: Held, revision: int) -> bool:
    """Hold a job back if a switch says so; tell whether one does. Raises `LedgerUnavailable`: then it stays as it is."""
    found = switches()
    if found is None:
        return False
    if not found.need_callers and found.mark_of(job) is None:
        return False
    with statement() as conn:
        mark = marks_of(conn, found, [job]).get(job.id)
        if mark is not None:
            park(conn, job.id, revision, mark)
    return mark is not None


def unpark(conn: psycopg.Connection[Any], limit: int = BATCH) -> int:
    """Make due again what a switch held back that has been changed or removed since; return how many.

    One that is still to wait is held back anew when it is about to be sent. A process that knows less than a mark says leaves it.
    """
    snapshot = feed().snapshot
    done = 0
    for (mark,) in conn.execute(_MARKS).fetchall():
        if done < limit and _is_over(mark, snapshot):
            done += len(conn.execute(_UNPARK, {"mark": mark, "limit": limit - done}).fetchall())
    return done


def _is_over(mark: str, snapshot: Snapshot) -> bool:
    if not mark.startswith(_MARK):
        return True  # nobody's: whoever wrote it by hand must not hide a job for ever
    revision, _, name = mark.removeprefix(_MARK).partition(":")
    rule = snapshot.flags.get(name)
    newest = snapshot.version if rule is None else rule.revision
    return not revision.isdigit() or newest > int(revision)


def door_of(headers: Mapping[str, Any]) -> str | None:
    """Return the door a job came in by, where its message says so."""
    found = headers.get(DOOR)
    return found if isinstance(found, str) else None
