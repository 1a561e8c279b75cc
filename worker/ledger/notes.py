"""What people write about a job, who looks at it, and who is writing about it."""

from __future__ import annotations

from typing import Any

import psycopg

from worker.errors import InvalidLive, JobNotFound
from worker.live import Presence, Typing
from worker.settings import settings

#: Longest note, in characters.
LONGEST = 10_000

_ADD = """
INSERT INTO job_notes (job_id, author, text)
SELECT %(job_id)s, %(author)s, %(text)s
 WHERE EXISTS (SELECT FROM jobs WHERE id = %(job_id)s) OR EXISTS (SELECT FROM job_history WHERE id = %(job_id)s)
RETURNING id, job_id, author, text, created_at
"""
_LIST = "SELECT id, job_id, author, text, created_at FROM job_notes WHERE job_id = %s ORDER BY id"
_REMOVE = "DELETE FROM job_notes WHERE id = %s AND job_id = %s RETURNING id"
#: Those on jobs that nobody can look at any more.
_PRUNE = """
DELETE FROM job_notes n WHERE created_at < clock_timestamp() - %s * interval '1 day'
   AND NOT EXISTS (SELECT FROM jobs WHERE id = n.job_id) AND NOT EXISTS (SELECT FROM job_history WHERE id = n.job_id)
"""
_COLUMNS = ("id", "job_id", "author", "text", "created_at")


def add(conn: psycopg.Connection[Any], job_id: str, author: str, text: str) -> dict[str, Any]:
    """Write a note on a job, living or past, and return it. Raises `JobNotFound`, and `InvalidLive` for a text that is none."""
    if not 0 < len(text) <= LONGEST or not text.strip() or "\0" in text:
        raise InvalidLive(f"text: a note has 1 to {LONGEST} characters and no U+0000, this one has {len(text)}")
    if not 0 < len(author) <= 255:
        raise InvalidLive(f"author: {author[:40]!r} is not a name of 1 to 255 characters")
    row = conn.execute(_ADD, {"job_id": job_id, "author": author, "text": text}).fetchone()
    if row is None:
        raise JobNotFound(f"no job {job_id!r}, living or past", job_id=job_id)
    return dict(zip(_COLUMNS, row, strict=True))


def listed(conn: psycopg.Connection[Any], job_id: str) -> list[dict[str, Any]]:
    """Return the notes on a job, the oldest first."""
    return [dict(zip(_COLUMNS, row, strict=True)) for row in conn.execute(_LIST, (job_id,)).fetchall()]


def remove(conn: psycopg.Connection[Any], job_id: str, note_id: int) -> bool:
    """Remove a note of a job; tell whether there was one."""
    return conn.execute(_REMOVE, (note_id, job_id)).fetchone() is not None


def prune(conn: psycopg.Connection[Any]) -> None:
    """Forget notes on jobs that history has dropped."""
    conn.execute(_PRUNE, (settings().history_days,))


def lookers(job_id: str) -> Presence:
    """Return who is looking at a job: its page beats for the person who has it open."""
    return Presence(f"job:{job_id}")


def writers(job_id: str) -> Typing:
    """Return who is writing a note on a job."""
    return Typing(f"job:{job_id}")
