"""The trail: who did what to what, written in the transaction in which it was done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from worker.cache import outbox
from worker.db import statement

#: Longest target that is kept, in characters: names are shorter, and a selection of jobs is told in the details.
_LONGEST = 500

_WRITE = """
INSERT INTO audit_log (actor, action, target, details) VALUES (%(actor)s, %(action)s, %(target)s, %(details)s)
"""
_TELLS = "SELECT FROM audit_log WHERE target = %(target)s AND action = %(action)s AND actor = %(actor)s LIMIT 1"
_COLUMNS = ("id", "actor", "action", "target", "details", "at")
_LIST = f"SELECT {', '.join(_COLUMNS)} FROM audit_log WHERE {{where}} ORDER BY id DESC LIMIT %(limit)s"
_NARROW = {
    "actor": "actor = %(actor)s", "action": "starts_with(action, %(action)s)", "target": "target = %(target)s",
    "before": "id < %(before)s",
}  # fmt: skip


def write(conn: psycopg.Connection[Any], actor: str, action: str, target: str = "", **details: Any) -> None:
    """Write that somebody did something, on the connection on which it is done.

    `action` is as `queue.pause`; `details` are JSON. Secrets must not be among them.
    """
    values = {"actor": actor, "action": action, "target": _plain(target)[:_LONGEST], "details": Jsonb(_plain(details))}
    conn.execute(_WRITE, values)


def tells(conn: psycopg.Connection[Any], actor: str, action: str, target: str) -> bool:
    """Tell whether it stands here that somebody did this to that: nobody but the console and the command line can write it."""
    values = {"actor": actor, "action": action, "target": _plain(target)[:_LONGEST]}
    return conn.execute(_TELLS, values).fetchone() is not None


@contextmanager
def recording(actor: str, action: str, target: str = "", **details: Any) -> Iterator[psycopg.Connection[Any]]:
    """Lend a connection in a transaction; what is done on it stands in the trail, or neither is.

        with trail.recording(operator.name, "queue.pause", queue) as conn:
            manage.set_paused(conn, queue, True)

    What is done by other means than SQL is done inside the block: if it fails there is no entry. Raises `LedgerUnavailable`.
    """
    with statement() as conn, outbox.transaction(conn):
        write(conn, actor, action, target, **details)
        yield conn


def listed(
    conn: psycopg.Connection[Any],
    *,
    actor: str | None = None,
    action: str | None = None,
    target: str | None = None,
    before: int | None = None,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Return entries, the newest first; `action` narrows to those that begin so, `before` to those before that id."""
    given = {"actor": actor, "action": action, "target": target, "before": before}
    values = {name: _plain(value) for name, value in given.items() if value is not None}
    where = " AND ".join(_NARROW[name] for name in values) or "true"
    rows = conn.execute(_LIST.format(where=where), {**values, "limit": limit}).fetchall()
    return [dict(zip(_COLUMNS, row, strict=True)) for row in rows]


def _plain(value: Any) -> Any:
    """Return a value without U+0000, which Postgres does not keep."""
    if isinstance(value, str):
        return value.replace("\0", "\\0")
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
