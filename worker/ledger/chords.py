"""Chords counted in rows: which parts have returned, and with what, so that a flush of Redis changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from worker.ledger.message import encode

#: The row is locked until the caller commits: keep what follows short.
_TOUCH = """
INSERT INTO chords AS c (group_id, body) VALUES (%(group)s, %(body)s::json)
ON CONFLICT (group_id) DO UPDATE SET body = coalesce(c.body, excluded.body)
"""
_ADD_PART = """
INSERT INTO chord_parts (group_id, task_id, position, status, result)
VALUES (%(group)s, %(task)s, %(position)s, %(status)s, %(result)s::json)
ON CONFLICT DO NOTHING RETURNING task_id
"""
_COUNT = "UPDATE chords SET returned = returned + 1 WHERE group_id = %(group)s"
_COMPLETE = """
UPDATE chords SET done_at = clock_timestamp() WHERE group_id = %(group)s AND done_at IS NULL AND returned >= size
RETURNING header, body
"""
_PARTS = "SELECT task_id, status, result FROM chord_parts WHERE group_id = %(group)s ORDER BY position NULLS LAST, task_id"

#: A chord applied again under the same id is a new run.
_SIZE = """
INSERT INTO chords AS c (group_id, size) VALUES (%(group)s, %(size)s)
ON CONFLICT (group_id) DO UPDATE
   SET size = excluded.size, done_at = NULL, returned = CASE WHEN c.done_at IS NULL THEN c.returned ELSE 0 END
"""
_CLEAR = """
DELETE FROM chord_parts
 WHERE group_id = %(group)s AND EXISTS (SELECT FROM chords WHERE group_id = %(group)s AND done_at IS NOT NULL)
"""
_GROW = """
INSERT INTO chords AS c (group_id, size) VALUES (%(group)s, 1) ON CONFLICT (group_id) DO UPDATE SET size = coalesce(c.size, 0) + 1
"""
_HEADER = """
INSERT INTO chords AS c (group_id, header) VALUES (%(group)s, %(header)s::json)
ON CONFLICT (group_id) DO UPDATE SET header = excluded.header
"""
_READ_HEADER = "SELECT header FROM chords WHERE group_id = %(group)s AND header IS NOT NULL"
_FORGET = "DELETE FROM chords WHERE group_id = %(group)s"
_RESULTS = "SELECT DISTINCT ON (id) id, result FROM job_history WHERE id = ANY(%(ids)s) ORDER BY id, finished_at DESC"


@dataclass(frozen=True, slots=True)
class Part:
    """A header task that returned: its Celery status and its encoded result, as text on its way in and decoded on its way out."""

    task_id: str
    status: str
    result: Any


@dataclass(frozen=True, slots=True)
class Complete:
    """A chord whose last part has just returned."""

    group_id: str
    parts: list[Part]
    header: Any
    body: Any


def set_size(conn: psycopg.Connection[Any], group_id: str, size: int) -> Complete | None:
    """Say how many parts the chord has; return it if all of them have returned already."""
    conn.execute(_CLEAR, {"group": group_id})
    conn.execute(_SIZE, {"group": group_id, "size": size})
    return _completed(conn, group_id)


def grow(conn: psycopg.Connection[Any], group_id: str) -> None:
    """Add one part to the chord's size."""
    conn.execute(_GROW, {"group": group_id})


def return_part(
    conn: psycopg.Connection[Any], group_id: str, part: Part, position: int | None, body: str
) -> Complete | None:
    """Count a part, once however often it returns; return the chord if it was the last. The caller commits soon."""
    conn.execute(_TOUCH, {"group": group_id, "body": body})
    values = {"group": group_id, "task": part.task_id, "position": position, "status": part.status}
    if conn.execute(_ADD_PART, {**values, "result": part.result}).fetchone() is None:
        return None
    conn.execute(_COUNT, {"group": group_id})
    return _completed(conn, group_id)


def _completed(conn: psycopg.Connection[Any], group_id: str) -> Complete | None:
    row = conn.execute(_COMPLETE, {"group": group_id}).fetchone()
    if row is None:
        return None
    parts = [Part(*part) for part in conn.execute(_PARTS, {"group": group_id}).fetchall()]
    return Complete(group_id, parts, header=row[0], body=row[1])


def save_header(conn: psycopg.Connection[Any], group_id: str, header: Any) -> None:
    """Keep the shape of a group's results, as Celery writes it."""
    conn.execute(_HEADER, {"group": group_id, "header": encode(header).decode()})


def read_header(conn: psycopg.Connection[Any], group_id: str) -> Any | None:
    """Return the shape of a group's results, or None when none was kept."""
    row = conn.execute(_READ_HEADER, {"group": group_id}).fetchone()
    return row[0] if row else None


def forget(conn: psycopg.Connection[Any], group_id: str) -> None:
    """Forget a group."""
    conn.execute(_FORGET, {"group": group_id})


def results_of(conn: psycopg.Connection[Any], job_ids: list[str]) -> dict[str, Any]:
    """Return the encoded results of ended jobs by id."""
    return dict(conn.execute(_RESULTS, {"ids": job_ids}).fetchall())
