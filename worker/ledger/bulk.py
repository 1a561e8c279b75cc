"""What a bulk act is meant for: a search as a job's argument carries it, and the jobs that it chooses."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import psycopg

from worker.clock import parse_moment
from worker.ledger import search
from worker.ledger.search import Search

#: The task that acts on many jobs.
TASK = "jobs.bulk"
#: Jobs one bulk act is for; the next takes the next ones. It bounds the memory for their ids.
MOST = 100_000
#: Jobs of one look.
_AT_ONCE = 2000


def plain(which: Search) -> dict[str, Any]:
    """Return a search as JSON says it, with what narrows alone."""
    given = {**asdict(which), "states": [str(state) for state in which.states]}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in given.items() if value}


def read(given: Mapping[str, Any]) -> Search:
    """Return the search that `plain` wrote."""
    moments = {name: parse_moment(given[name]) for name in ("since", "until") if name in given}
    return Search(**{**given, **moments})


def narrowed(which: Search, states: Sequence[str], default: Sequence[str]) -> Search | None:
    """Return the search among the states in which an act makes sense, `default` where it names none; None for none of them."""
    meant = [state for state in which.states if state in states] if which.states else list(default)
    return replace(which, states=tuple(meant)) if meant else None


def choose(
    conn: psycopg.Connection[Any], which: Search, *, most: int = MOST, budget_s: float | None = None
) -> tuple[list[str], bool]:
    """Return the ids of jobs that are meant by their latest lives, and whether these are all of them."""
    ids: dict[str, None] = {}
    deadline = None if budget_s is None else time.monotonic() + budget_s
    cursor: str | None = ""
    while cursor is not None and len(ids) < most:
        limit = min(_AT_ONCE, most - len(ids))
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        found = search.page(conn, which, cursor=cursor, limit=limit, budget_s=left, last_only=True)
        ids.update(dict.fromkeys(job["id"] for job in found.jobs))
        cursor = found.next
        if deadline is not None and time.monotonic() > deadline:
            break
    return list(ids), cursor is None
