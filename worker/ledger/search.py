"""Searching jobs for people: pages of the living and then of the past, each answered in a moment, however many jobs there are.

A page goes along one index and looks at each job on the way. What a rare combination would take too long to find is looked for
in several goes: a page that was cut says so, and its cursor goes on where it stopped. None of the statements is prepared: a plan
that is kept is made for a common task, and reads all of history for a rare one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import psycopg

from worker.clock import parse_moment
from worker.ledger.manage import rows_of
from worker.states import ACTIVE_STATES, FINAL_STATES, JobState

#: Seconds that one page looks for jobs; with the rest of what a page takes it is answered within 200 ms.
BUDGET_S = 0.08
#: Jobs that one statement looks at, at first and at most: the first is soon there, and none holds up the end of the budget.
_FIRST, _MOST = 500, 4000
#: Jobs counted to find out by which of several indexes there are fewest.
_PROBED = 1000
#: Least characters of the beginning of an id, and most jobs found by it.
LEAST_ID, _MOST_BY_ID = 8, 200
#: Longest text of a filter.
LONGEST = 500

_LISTED = """id, task, queue, priority, state, left(args, 400) AS args, left(kwargs, 400) AS kwargs, attempt, max_attempts,
       caller, progress, left(error, 400) AS error, created_at, available_at, started_at, claimed_at"""
_PAST = f"""
SELECT {_LISTED}, finished_at FROM ({{along}}) AS looked_at WHERE {{rest}} LIMIT %(want)s
"""
#: One way along an index of the past, from a position on, the latest first.
_ALONG = """
(SELECT {columns} FROM job_history WHERE {way} AND {window} ORDER BY finished_at DESC, id DESC LIMIT {chunk})
"""
_MERGED = "SELECT * FROM ({ways}) AS ways ORDER BY finished_at DESC, id DESC LIMIT {chunk}"
#: The last job that it looked at, by the index alone; none when these were all.
_EDGE = """
SELECT finished_at, id FROM ({ways}) AS ways ORDER BY finished_at DESC, id DESC OFFSET {chunk} - 1 LIMIT 1
"""
_PROBE = "SELECT count(*) FROM (SELECT FROM job_history WHERE {way} AND {window} LIMIT %(probed)s) AS probed"

#: The living by id: nothing else orders them that a claim would not have to keep up. Ids made here are in order of time.
_LIVING = f"""
SELECT {_LISTED}, NULL::timestamptz AS finished_at
  FROM (SELECT * FROM jobs WHERE {{window}} ORDER BY id DESC LIMIT {{chunk}}) AS looked_at WHERE {{rest}} LIMIT %(want)s
"""
_LIVING_EDGE = "SELECT id FROM jobs WHERE {window} ORDER BY id DESC OFFSET {chunk} - 1 LIMIT 1"
#: Those that run are as many as the fleet has places, and have an index of their own.
_RUNNING = f"""
SELECT {_LISTED}, NULL::timestamptz AS finished_at
  FROM (SELECT * FROM jobs WHERE state = 'running' OFFSET 0) AS looked_at
 WHERE {{window}} AND {{rest}} ORDER BY id DESC LIMIT %(want)s
"""
_BY_ID = f"""
SELECT {_LISTED}, finished_at FROM (
  (SELECT {_LISTED}, NULL::timestamptz AS finished_at FROM jobs WHERE {{ids}} LIMIT %(want)s)
  UNION ALL
  (SELECT {_LISTED}, finished_at FROM job_history WHERE {{ids}} LIMIT %(want)s)) AS found
 WHERE {{rest}} ORDER BY finished_at DESC NULLS FIRST, id DESC LIMIT %(want)s
"""
_IDS = "id >= %(id)s AND id < %(id)s || U&'\\+10FFFF'"

#: Only what became of a job last counts for those who act on it.
_LAST = """NOT EXISTS (SELECT FROM jobs j WHERE j.id = looked_at.id)
   AND NOT EXISTS (SELECT FROM job_history later WHERE later.id = looked_at.id AND later.finished_at > looked_at.finished_at)"""

_REST = {
    "states": "state = ANY(%(states)s)", "task": "task = %(task)s", "queue": "queue = %(queue)s", "caller": "caller = %(caller)s",
    "text": "(position(%(text)s in args) > 0 OR position(%(text)s in kwargs) > 0)",
    "accepted_since": "created_at >= %(since)s", "accepted_until": "created_at < %(until)s",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Search:
    """Which jobs are meant: each field that is not empty narrows.

    `id` is an id or how it begins; `text` stands in the arguments; `since` and `until` are about the moment at which a job ended
    or, living, was accepted.
    """

    states: Sequence[str] = ()
    task: str = ""
    queue: str = ""
    caller: str = ""
    id: str = ""
    text: str = ""
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        for state in self.states:
            if state not in set(JobState):
                raise ValueError(f"state: {state[:40]!r} is no state; states are {', '.join(JobState)}")
        for name in ("task", "queue", "caller", "id", "text"):
            value = getattr(self, name)
            if "\0" in value or len(value) > LONGEST:
                raise ValueError(f"{name}: {value[:40]!r} is not a text of at most {LONGEST} characters without U+0000")
        if self.id and len(self.id) < LEAST_ID:
            raise ValueError(f"id: {self.id!r} is too short; give a whole id or at least its first {LEAST_ID} characters")
        if self.since and self.until and self.since >= self.until:
            raise ValueError("until: it is not after since")

    @property
    def is_empty(self) -> bool:
        """Whether it narrows nothing."""
        return not any(getattr(self, field.name) for field in fields(self))

    @property
    def living(self) -> list[str]:
        """The states meant of jobs that live."""
        return [state for state in ACTIVE_STATES if not self.states or state in self.states]

    @property
    def past(self) -> list[str]:
        """The states meant of jobs that ended."""
        return [state for state in FINAL_STATES if not self.states or state in self.states]

    def values(self) -> dict[str, Any]:
        """Return the parameters of its conditions."""
        return {**{field.name: getattr(self, field.name) for field in fields(self)}, "states": list(self.states)}


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs of a page. `next` is the cursor of what is behind it, None when there is nothing; `cut` says that the page is not full
    because time was up, and `reached` how far it came in the past."""

    jobs: list[dict[str, Any]]
    next: str | None = None
    cut: bool = False
    reached: datetime | None = None


@dataclass(slots=True)
class _Place:
    """Where a search stands: at which id among the living, or at which moment and id in the past; empty at the beginning."""

    part: str = "living"
    at: datetime | None = None
    id: str = ""

    def __str__(self) -> str:
        if self.part == "living":
            return f"l~{self.id}"
        return f"p~{self.at.astimezone(UTC).isoformat() if self.at else ''}~{self.id}"

    @classmethod
    def parse(cls, text: str) -> _Place:
        part, _, rest = text.partition("~")
        try:
            if part == "l" and rest and "\0" not in rest:
                return cls("living", None, rest)
            moment, _, job_id = rest.partition("~")
            if part == "p" and "\0" not in job_id:
                return cls("past", parse_moment(moment) if moment else None, job_id)
        except ValueError:
            pass
        raise ValueError(f"cursor: {text[:80]!r} is none; take it from a page's link to the next")


def page(
    conn: psycopg.Connection[Any], search: Search, *, cursor: str = "", limit: int = 50, budget_s: float | None = BUDGET_S,
    last_only: bool = False,
) -> Page:  # fmt: skip
    """Return a page of jobs: the living by id, the newest first, and then the past, the latest first.

    With `budget_s` None it looks until the page is full. With `last_only` a job that was replayed stands for its latest life
    alone. Raises `ValueError` for a cursor that is none.
    """
    place = _Place.parse(cursor) if cursor else _Place()
    if search.id:
        return _by_id(conn, search)
    deadline = None if budget_s is None else time.monotonic() + budget_s
    found: list[dict[str, Any]] = []
    if place.part == "living":
        if search.living and not _walk_living(conn, search, place, found, limit, deadline):
            return Page(found, str(place), len(found) < limit)
        place = _Place("past")
        if len(found) == limit:
            return Page(found, str(place) if search.past else None)
    if search.past and not _walk_past(conn, search, place, found, limit, deadline, last_only):
        return Page(found, str(place), len(found) < limit, place.at)
    return Page(found)


def _by_id(conn: psycopg.Connection[Any], search: Search) -> Page:
    rest = _conditions(search, ("states", "task", "queue", "caller", "text"))
    found = rows_of(conn, _BY_ID.format(ids=_IDS, rest=rest), {**search.values(), "want": _MOST_BY_ID})
    return Page(found, cut=len(found) == _MOST_BY_ID)


def _walk_living(
    conn: psycopg.Connection[Any], search: Search, place: _Place, found: list[dict[str, Any]], limit: int, deadline: float | None
) -> bool:  # fmt: skip
    """Look at the living from a place on until there are enough or time is up; tell whether these were all of them."""
    rest = _conditions(search, ("states", "task", "queue", "caller", "text", "accepted_since", "accepted_until"))
    chunk = _FIRST
    while True:
        window = "id < %(after)s" if place.id else "true"
        values = {**search.values(), "after": place.id, "want": limit - len(found)}
        running = search.living == [JobState.RUNNING]
        sql = (_RUNNING if running else _LIVING).format(window=window, rest=rest, chunk=chunk)
        found += rows_of(conn, sql, values, prepare=False)
        if len(found) == limit:
            place.id = found[-1]["id"]
            return False
        edge = None if running else conn.execute(_LIVING_EDGE.format(window=window, chunk=chunk), values).fetchone()
        if edge is None:
            return True
        place.id = edge[0]
        if deadline is not None and time.monotonic() > deadline:
            return False
        chunk = min(chunk * 2, _MOST)


def _walk_past(
    conn: psycopg.Connection[Any], search: Search, place: _Place, found: list[dict[str, Any]], limit: int, deadline: float | None,
    last_only: bool,
) -> bool:  # fmt: skip
    """Look at the past from a place on until there are enough or time is up; tell whether these were all of them."""
    ways = _ways(conn, search)
    rest = _conditions(search, ("states", "task", "queue", "caller", "text")) + (f" AND {_LAST}" if last_only else "")
    chunk = _FIRST
    while True:
        window = _window(search, place)
        along, edges = _along(ways, window, chunk)
        values = {**search.values(), "at": place.at, "after": place.id, "want": limit - len(found)}
        found += rows_of(conn, _PAST.format(along=along, rest=rest), values, prepare=False)
        if len(found) == limit:
            place.at, place.id = found[-1]["finished_at"], found[-1]["id"]
            return False
        edge = rows_of(conn, edges, values, prepare=False)
        if not edge:
            return True
        place.at, place.id = edge[0]["finished_at"], edge[0]["id"]
        if deadline is not None and time.monotonic() > deadline:
            return False
        chunk = min(chunk * 2, _MOST)


def _along(ways: list[str], window: str, chunk: int) -> tuple[str, str]:
    """Return the SQL for the next jobs along an index, and for the last of them."""
    wholes, edges = (
        [_ALONG.format(columns=columns, way=way, window=window, chunk=chunk) for way in ways]
        for columns in ("*", "finished_at, id")
    )
    merged = wholes[0] if len(wholes) == 1 else _MERGED.format(ways=" UNION ALL ".join(wholes), chunk=chunk)
    return merged, _EDGE.format(ways=" UNION ALL ".join(edges), chunk=chunk)


def _window(search: Search, place: _Place) -> str:
    """Return the condition on when a job ended; its first half says what the second implies, and leaves out partitions."""
    parts = ["finished_at <= %(at)s AND (finished_at, id) < (%(at)s, %(after)s)"] if place.at is not None else []
    parts += ["finished_at >= %(since)s"] if search.since else []
    parts += ["finished_at < %(until)s"] if search.until else []
    return " AND ".join(parts) or "true"


def _ways(conn: psycopg.Connection[Any], search: Search) -> list[str]:
    """Return the conditions of the index to go along, one for each stretch of it: of several that with the fewest jobs."""
    ways: list[list[str]] = []
    if search.caller:
        ways.append(["caller = %(caller)s"])
    if search.states and JobState.SUCCEEDED not in search.past:
        ways.append([f"state = '{state}' AND state <> 'succeeded'" for state in search.past])
    if search.task:
        ways.append(["task = %(task)s"])
    if search.queue:
        ways.append(["queue = %(queue)s"])
    if len(ways) < 2:
        return ways[0] if ways else ["true"]
    values = {**search.values(), "probed": _PROBED}
    window = _window(search, _Place())
    counts = [sum(_count(conn, _PROBE.format(way=way, window=window), values) for way in each) for each in ways]
    return ways[counts.index(min(counts))]


def _count(conn: psycopg.Connection[Any], sql: str, values: dict[str, Any]) -> int:
    row = conn.execute(sql, values, prepare=False).fetchone()
    return int(row[0]) if row else 0


def _conditions(search: Search, names: Sequence[str]) -> str:
    given = {"accepted_since": search.since, "accepted_until": search.until}
    return " AND ".join(_REST[name] for name in names if given.get(name, getattr(search, name, None))) or "true"
