"""What a job belongs to and what came of it: the parts of its chain, group or chord, as far as rows know of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from worker.ledger.manage import rows_of

#: Members that are read, and how deep they are shown: a page is no place for a group of thousands.
MOST, _DEEPEST = 300, 12

_COLUMNS = "id, task, state, parent_id, group_id, created_at"
_MEMBERS = f"""
(SELECT {_COLUMNS} FROM jobs WHERE id = %(root)s OR root_id = %(root)s AND root_id <> id LIMIT %(most)s)
UNION ALL
(SELECT {_COLUMNS} FROM job_history WHERE id = %(root)s OR root_id = %(root)s AND root_id <> id LIMIT %(most)s)
"""
_CHORD = "SELECT size, returned, done_at, created_at FROM chords WHERE group_id = %s"

#: What tells whether a page about a job is still right; the rest of its row changes with these.
_STANDING = """
SELECT state, attempt, revision, progress::text, cancel_requested,
       (SELECT (count(*), max(n.id))::text FROM job_notes n WHERE n.job_id = %(id)s)
  FROM jobs WHERE id = %(id)s
"""
_STANDING_PAST = """
SELECT state, attempt, revision, finished_at::text, (SELECT (count(*), max(n.id))::text FROM job_notes n WHERE n.job_id = %(id)s)
  FROM job_history WHERE id = %(id)s ORDER BY finished_at DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Member:
    """A job of a family, and how far below its first one it stands."""

    depth: int
    job: dict[str, Any]


def members(conn: psycopg.Connection[Any], root_id: str) -> list[Member]:
    """Return the jobs that have this first one, each behind the one that sent it, `MOST` of them at most."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows_of(conn, _MEMBERS, {"root": root_id, "most": MOST}):
        found.setdefault(row["id"], row)  # one that was replayed is told by its present life
    below: dict[str, list[dict[str, Any]]] = {}
    tops = []
    for row in sorted(found.values(), key=lambda row: (row["created_at"], row["id"])):
        parent = row["parent_id"]
        if row["id"] == root_id or parent not in found or parent == row["id"]:
            tops.append(row)
        else:
            below.setdefault(parent, []).append(row)
    told: list[Member] = []
    rest = [(0, row) for row in reversed(tops)]
    seen = set()
    while rest:
        depth, row = rest.pop()
        if row["id"] in seen:
            continue
        seen.add(row["id"])
        told.append(Member(min(depth, _DEEPEST), row))
        rest += [(depth + 1, each) for each in reversed(below.get(row["id"], []))]
    return told


def chord(conn: psycopg.Connection[Any], group_id: str) -> dict[str, Any] | None:
    """Return how many parts of a chord have returned, and of how many; None where no chord is counted."""
    found = rows_of(conn, _CHORD, (group_id,))
    return found[0] if found else None


def standing(conn: psycopg.Connection[Any], job_id: str) -> tuple[Any, ...] | None:
    """Return something that changes when a job, or what is noted on it, does; None for no job."""
    values = {"id": job_id}
    found = conn.execute(_STANDING, values).fetchone() or conn.execute(_STANDING_PAST, values).fetchone()
    return tuple(found) if found else None
