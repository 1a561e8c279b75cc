"""Schedules as rows: added, edited and paused while the system runs, and taken by beats as they fall due."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypedDict, cast

import psycopg
from psycopg.types.json import Jsonb

from worker.cache import Region, outbox
from worker.db import repeatable
from worker.errors import InvalidSchedule, ScheduleNotFound
from worker.ledger.ticks import MAX_EVERY_S, MIN_EVERY_S, After, Crontab, interval_after, last_until, parse_zone

#: What to do about ticks that were missed: nothing, the latest of them once, or each of them.
CATCH_UP = ("skip", "once", "all")
#: How late, in seconds, a tick of a `skip` schedule still runs: ten rounds of a beat, so its restart skips nothing.
GRACE_S = 10.0
#: Ticks of one schedule that one round makes up for; the next round goes on.
MOST_TICKS = 1000
#: Schedules one transaction takes.
_TAKEN = 50
#: Seconds a transaction may lie idle before Postgres ends it: a beat that is frozen must not keep its schedules from the others.
_LET_GO = "SET LOCAL idle_in_transaction_session_timeout = '10s'"

#: Options a schedule cannot set: they say which job it is and whether it is kept, and that is for the tick to say.
_RESERVED = ("task_id", "durable", "fresh", "idempotency_key", "producer", "publisher", "connection", "eta")

#: Two beats that start together declare one after the other.
_LOCK = 4_710_922_317

_COLUMNS = ("name", "task", "args", "kwargs", "options", "crontab", "every_s", "timezone", "enabled", "catch_up", "source",
            "anchor", "last_tick", "next_tick", "updated_at")  # fmt: skip

_NOW = "SELECT coalesce(%s::timestamptz, clock_timestamp())"
_LIST = f"SELECT {', '.join(_COLUMNS)} FROM schedules ORDER BY name"
_GET = f"SELECT {', '.join(_COLUMNS)} FROM schedules WHERE name = %s"
_GET_LOCKED = f"{_GET} FOR UPDATE"

_INSERT = """
INSERT INTO schedules (name, task, args, kwargs, options, crontab, every_s, timezone, enabled, catch_up, source, anchor,
                       next_tick)
VALUES (%(name)s, %(task)s, %(args)s, %(kwargs)s, %(options)s, %(crontab)s, %(every_s)s, %(timezone)s, %(enabled)s, %(catch_up)s,
        %(source)s, %(anchor)s, %(next_tick)s)
ON CONFLICT (name) DO NOTHING
RETURNING name
"""
_UPDATE = """
UPDATE schedules
   SET task = %(task)s, args = %(args)s, kwargs = %(kwargs)s, options = %(options)s, crontab = %(crontab)s, every_s = %(every_s)s,
       timezone = %(timezone)s, enabled = %(enabled)s, catch_up = %(catch_up)s, anchor = %(anchor)s, next_tick = %(next_tick)s,
       updated_at = clock_timestamp()
 WHERE name = %(name)s
"""
_REMOVE = "DELETE FROM schedules WHERE name = %s"
_REMOVE_UNDECLARED = "DELETE FROM schedules WHERE source = 'code' AND name <> ALL(%s) RETURNING name"

#: In the order of names, so that a round passes each schedule once, also one that cannot be sent or has more to make up for.
_DUE = f"""
SELECT {', '.join(_COLUMNS)} FROM schedules
 WHERE enabled AND next_tick <= %(now)s AND name > %(beyond)s
 ORDER BY name LIMIT {_TAKEN} FOR UPDATE SKIP LOCKED
"""
_ADVANCE = "UPDATE schedules SET last_tick = coalesce(%s, last_tick), next_tick = %s WHERE name = %s"
_NEXT = "SELECT extract(epoch FROM min(next_tick) - clock_timestamp())::float8 FROM schedules WHERE enabled AND next_tick > %s"


@dataclass(frozen=True)
class Spec:
    """A schedule as people and code write it: what runs, and either a crontab or an interval in seconds."""

    name: str
    task: str
    args: Sequence[Any] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    #: Options of `apply_async`: queue, priority, expires, countdown, headers, max_attempts, unique_key …
    options: dict[str, Any] = field(default_factory=dict)
    crontab: str | None = None
    every_s: float | None = None
    timezone: str = "UTC"
    enabled: bool = True
    catch_up: str = "once"
    #: Where an interval is counted from; None for the moment it is added.
    anchor: datetime | None = None

    def check(self) -> None:
        """Raise `InvalidSchedule` that names the wrong field and the accepted form; whether the task exists is for the caller."""
        for name in ("name", "task"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip() or len(value) > 200 or not value.isprintable():
                raise _wrong(name, value, "a line of 1 to 200 characters")
        if not isinstance(self.args, list | tuple):
            raise _wrong("args", self.args, "a list, like [1, \"two\"]")
        for name in ("kwargs", "options"):
            value = getattr(self, name)
            if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
                raise _wrong(name, value, "an object, like {\"key\": 1}")
        for name in ("args", "kwargs", "options"):
            _check_json(name, getattr(self, name))
        if reserved := sorted(set(self.options) & set(_RESERVED)):
            raise InvalidSchedule(f"options: {reserved[0]!r} cannot be set by a schedule", field="options", value=reserved[0])
        if not isinstance(self.enabled, bool):
            raise _wrong("enabled", self.enabled, "true or false")
        if self.catch_up not in CATCH_UP:
            raise _wrong("catch_up", self.catch_up, "skip, once or all")
        if self.anchor is not None and (not isinstance(self.anchor, datetime) or self.anchor.tzinfo is None):
            raise _wrong("anchor", self.anchor, "a moment with a time zone")
        self._check_timing()

    def _check_timing(self) -> None:
        if (self.crontab is None) == (self.every_s is None):
            raise InvalidSchedule("crontab, every_s: a schedule has one of the two, not both or neither", field="crontab")
        if self.every_s is not None:
            number = isinstance(self.every_s, int | float) and not isinstance(self.every_s, bool)
            if not number or not math.isfinite(self.every_s) or not MIN_EVERY_S <= self.every_s <= MAX_EVERY_S:
                raise _wrong("every_s", self.every_s, f"a number of seconds from {MIN_EVERY_S:g} to {MAX_EVERY_S:.0f}")
        if not isinstance(self.timezone, str):
            raise _wrong("timezone", self.timezone, "a name like Europe/Berlin")
        parse_zone(self.timezone)
        if self.crontab is not None:
            if not isinstance(self.crontab, str):
                raise _wrong("crontab", self.crontab, "five fields, like 0 8 * * mon-fri")
            Crontab.parse(self.crontab)


class Listed(TypedDict):
    """A schedule as it is listed: its row, moments in UTC."""

    name: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    crontab: str | None
    every_s: float | None
    timezone: str
    enabled: bool
    catch_up: str
    source: str
    anchor: datetime
    last_tick: datetime | None
    next_tick: datetime | None
    updated_at: datetime


#: Each change here, and each tick, invalidates; the life bounds what a change by hand in the database takes to be seen.
_listed = Region("schedules", ttl=10.0, type=list[Listed], max_bytes=2**26)

#: What `edit` may change.
EDITABLE = tuple(f.name for f in fields(Spec) if f.name != "name")


def _wrong(name: str, value: Any, accepted: str) -> InvalidSchedule:
    shown = repr(value)
    return InvalidSchedule(f"{name}: {shown[:80]} is not {accepted}", field=name, value=value)


def _check_json(name: str, value: Any) -> None:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidSchedule(f"{name}: cannot be written as JSON: {exc}", field=name) from exc
    if "\\u0000" in text:
        raise InvalidSchedule(f"{name}: Postgres cannot keep the character U+0000", field=name)


# ---- what people do


def list_schedules(conn: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    """Return all schedules by name; moments are in UTC."""
    return [_dict(row) for row in conn.execute(_LIST).fetchall()]


def listed() -> list[Listed]:
    """Return all schedules by name, through the cache; a change or a tick is seen as soon as it has committed."""
    return _listed.get_or_load("all", lambda: cast(list[Listed], repeatable(list_schedules)))


def forget_list(changes: outbox.Changes) -> None:
    """Let the transaction of these changes make the cache forget the list."""
    changes.add(keys=[_listed.key("all")])


def get(conn: psycopg.Connection[Any], name: str) -> dict[str, Any]:
    """Return a schedule. Raises `ScheduleNotFound`."""
    return _found(conn.execute(_GET, (name.replace("\0", "\\0"),)).fetchone(), name)


def add(conn: psycopg.Connection[Any], spec: Spec, *, now: datetime | None = None) -> dict[str, Any]:
    """Add a schedule and return it; it ticks from now on. Raises `InvalidSchedule`, also when the name is taken."""
    spec.check()
    with _changing(conn):
        if not _insert(conn, spec, "people", clock(conn, now)):
            raise InvalidSchedule(f"name: there is a schedule {spec.name!r} already; edit it or choose another", field="name")
        return get(conn, spec.name)


def edit(conn: psycopg.Connection[Any], name: str, *, now: datetime | None = None, **changes: Any) -> dict[str, Any]:
    """Change fields of a schedule and return it. Setting `crontab` clears `every_s`, and the other way round.

    A new timing holds from now on; a tick that is due already still runs. Raises `InvalidSchedule`, also for one that is declared
    in code (only `enabled` can be changed there), and `ScheduleNotFound`.
    """
    if unknown := sorted(set(changes) - set(EDITABLE)):
        raise InvalidSchedule(f"{unknown[0]!r} is not a field of a schedule: {', '.join(EDITABLE)}", field=unknown[0])
    if changes.get("crontab") is not None:
        changes.setdefault("every_s", None)
    elif changes.get("every_s") is not None:
        changes.setdefault("crontab", None)
    with _changing(conn):
        row = _locked(conn, name)
        if row["source"] == "code" and set(changes) - {"enabled"}:
            raise InvalidSchedule(f"schedule {name!r} is declared in code and changed there; here it can only be paused")
        spec = Spec(**{**{key: row[key] for key in ("name", *EDITABLE)}, "anchor": None, **changes})
        spec.check()
        _update(conn, spec, row, clock(conn, now))
        return get(conn, name)


def set_enabled(conn: psycopg.Connection[Any], name: str, enabled: bool, *, now: datetime | None = None) -> dict[str, Any]:
    """Pause a schedule or let it go on, and return it; ticks of the pause are not made up for. Raises `ScheduleNotFound`."""
    return edit(conn, name, now=now, enabled=enabled)


def remove(conn: psycopg.Connection[Any], name: str) -> None:
    """Remove a schedule; jobs it has made stay. Raises `ScheduleNotFound`, and `InvalidSchedule` for one declared in code."""
    with _changing(conn):
        if _locked(conn, name)["source"] == "code":
            raise InvalidSchedule(f"schedule {name!r} is declared in code and is removed there; pause it instead", field="name")
        conn.execute(_REMOVE, (name,))


# ---- what the code declares


def declare(conn: psycopg.Connection[Any], specs: Sequence[Spec], *, now: datetime | None = None) -> list[str]:
    """Make the rows of source `code` what the code says, and return the names that people's schedules have taken before.

    Whether a schedule is enabled is the operators' from its first declaration on; one that is not declared any more is removed.
    Ticks missed since the last declaration are not lost.
    """
    taken = []
    with _changing(conn):
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        moment = clock(conn, now)
        for spec in specs:
            spec.check()
            if _insert(conn, spec, "code", moment):
                continue
            row = _locked(conn, spec.name)
            if row["source"] != "code":
                taken.append(spec.name)
            else:
                _update(conn, Spec(**{**_values(spec), "enabled": row["enabled"]}), row, moment)
        conn.execute(_REMOVE_UNDECLARED, ([spec.name for spec in specs],))
    return taken


# ---- what beats do


@dataclass(frozen=True)
class Turn:
    """A due schedule in a beat's hands: the ticks it is to run, in order, and where it stands then."""

    row: dict[str, Any]
    ticks: tuple[datetime, ...]
    next_tick: datetime
    #: Whether ticks are left for another round.
    more: bool


def due(conn: psycopg.Connection[Any], now: datetime, beyond: str = "") -> list[dict[str, Any]]:
    """Lock, in the caller's transaction, the next schedules after the name `beyond` that are due and that no other beat has."""
    conn.execute(_LET_GO)
    return [_dict(row) for row in conn.execute(_DUE, {"now": now, "beyond": beyond}).fetchall()]


def reckon(row: dict[str, Any], now: datetime) -> Turn:
    """Return which ticks of a due schedule run, by its way to catch up. Raises `InvalidSchedule` for a row without sense."""
    after, first = _after(row), row["next_tick"]
    if row["catch_up"] == "all":
        ticks: list[datetime] = []
        tick = first
        while tick <= now and len(ticks) < MOST_TICKS:
            ticks.append(tick)
            tick = after(tick)
        return Turn(row, tuple(ticks), tick, tick <= now)
    last = last_until(after, first, now)
    runs = row["catch_up"] == "once" or now - last <= timedelta(seconds=GRACE_S)
    return Turn(row, (last,) if runs else (), after(last), False)


def advance(conn: psycopg.Connection[Any], turn: Turn) -> None:
    """Set the schedule on, in the transaction that accepts its jobs."""
    conn.execute(_ADVANCE, (turn.ticks[-1] if turn.ticks else None, turn.next_tick, turn.row["name"]))


def seconds_to_next(conn: psycopg.Connection[Any], since: datetime) -> float | None:
    """Return the seconds until the first tick after `since`, negative when it has passed; None when there is none."""
    row = conn.execute(_NEXT, (since,)).fetchone()
    return None if row is None or row[0] is None else float(row[0])


def upcoming(row: Mapping[str, Any], count: int) -> list[datetime]:
    """Return the next ticks of a schedule as it stands, in UTC, also of a paused one; fewer where there are no more.

    Raises `InvalidSchedule` for a row without sense.
    """
    after = _after(row)
    found: list[datetime] = []
    tick = row["next_tick"]
    while tick is not None and len(found) < count:
        found.append(tick)
        tick = after(tick)
    return found


# ---- inside


def _after(row: Mapping[str, Any]) -> After:
    """Return the arithmetic of a row; the timing holds since its anchor and has no ticks before."""
    if row["every_s"] is not None:
        return partial(interval_after, anchor=row["anchor"], every_s=row["every_s"])
    crontab, zone, anchor = Crontab.parse(row["crontab"]), parse_zone(row["timezone"]), row["anchor"]
    return lambda moment: crontab.next_after(max(moment, anchor), zone)


def _timing(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["every_s"], row["crontab"], row["timezone"] if row["crontab"] is not None else None)


def _values(spec: Spec) -> dict[str, Any]:
    return {f.name: getattr(spec, f.name) for f in fields(Spec)}


def _parameters(spec: Spec, anchor: datetime, next_tick: datetime) -> dict[str, Any]:
    return {
        **_values(spec), "anchor": anchor, "next_tick": next_tick,
        "args": Jsonb(list(spec.args)), "kwargs": Jsonb(spec.kwargs), "options": Jsonb(spec.options),
    }  # fmt: skip


def _insert(conn: psycopg.Connection[Any], spec: Spec, source: str, now: datetime) -> bool:
    values = _values(spec) | {"anchor": spec.anchor or now}
    parameters = _parameters(spec, values["anchor"], _after(values)(now)) | {"source": source}
    return conn.execute(_INSERT, parameters).fetchone() is not None


def _update(conn: psycopg.Connection[Any], spec: Spec, row: dict[str, Any], now: datetime) -> None:
    """Write the changed schedule; where it stands is kept unless its timing has changed or its pause is over."""
    anchor, next_tick = row["anchor"], row["next_tick"]
    values = _values(spec)
    moved = _timing(values) != _timing(row) or (spec.anchor is not None and spec.anchor != anchor)
    if moved:
        anchor = spec.anchor or now
    resumed = spec.enabled and not row["enabled"]
    pending = next_tick is not None and next_tick <= now and row["enabled"]
    if resumed or (moved and not pending) or next_tick is None:
        next_tick = _after(values | {"anchor": anchor})(now)
    conn.execute(_UPDATE, _parameters(spec, anchor, next_tick))


def clock(conn: psycopg.Connection[Any], now: datetime | None = None) -> datetime:
    """Return the moment by Postgres, in UTC, or the one given instead."""
    row = conn.execute(_NOW, (now,)).fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment.astimezone(UTC)


def _locked(conn: psycopg.Connection[Any], name: str) -> dict[str, Any]:
    return _found(conn.execute(_GET_LOCKED, (name.replace("\0", "\\0"),)).fetchone(), name)


def _found(row: tuple[Any, ...] | None, name: str) -> dict[str, Any]:
    if row is None:
        raise ScheduleNotFound(f"there is no schedule {name!r}", name=name)
    return _dict(row)


def _dict(row: tuple[Any, ...]) -> dict[str, Any]:
    """Return a row by column. Its moments are in UTC, whatever zone the connection speaks: ids of jobs are made from them."""
    return {
        key: value.astimezone(UTC) if isinstance(value, datetime) else value for key, value in zip(_COLUMNS, row, strict=True)
    }


@contextmanager
def _changing(conn: psycopg.Connection[Any]) -> Iterator[None]:
    with outbox.transaction(conn) as changes, _storable():
        yield
        forget_list(changes)


@contextmanager
def _storable() -> Iterator[None]:
    try:
        yield
    except (psycopg.DataError, psycopg.IntegrityError) as exc:
        raise InvalidSchedule(f"the schedule cannot be stored: {str(exc).splitlines()[0]}") from exc
