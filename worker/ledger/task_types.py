"""The registry of tasks in Postgres: written by processes that know them, read by doors that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

import psycopg

from worker.ledger.message import encode

#: A row that says the same stays as it is: fleets start together.
_REGISTER = """
INSERT INTO task_types AS t
       (name, queue, priority, max_attempts, expires_s, headers, arguments, positional, open_ended, limited, is_unique,
        names, queues, key_ttl_s, max_message_bytes)
VALUES (%(name)s, %(queue)s, %(priority)s, %(max_attempts)s, %(expires_s)s, %(headers)s::json, %(arguments)s::jsonb,
        %(positional)s::jsonb, %(open_ended)s, %(limited)s, %(is_unique)s,
        %(names)s, %(queues)s, %(key_ttl_s)s, %(max_message_bytes)s)
ON CONFLICT (name) DO UPDATE
   SET queue = excluded.queue, priority = excluded.priority, max_attempts = excluded.max_attempts,
       expires_s = excluded.expires_s, headers = excluded.headers, arguments = excluded.arguments,
       positional = excluded.positional, open_ended = excluded.open_ended, limited = excluded.limited,
       is_unique = excluded.is_unique,
       names = excluded.names, queues = excluded.queues, key_ttl_s = excluded.key_ttl_s,
       max_message_bytes = excluded.max_message_bytes, updated_at = clock_timestamp()
 WHERE (t.queue, t.priority, t.max_attempts, t.expires_s, t.headers::text, t.arguments, t.positional, t.open_ended, t.limited,
        t.is_unique, t.names, t.queues, t.key_ttl_s, t.max_message_bytes)
       IS DISTINCT FROM
       (excluded.queue, excluded.priority, excluded.max_attempts, excluded.expires_s, excluded.headers::text,
        excluded.arguments, excluded.positional, excluded.open_ended, excluded.limited, excluded.is_unique,
        excluded.names, excluded.queues, excluded.key_ttl_s, excluded.max_message_bytes)
"""


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task as the registry tells it; see `models.TaskType`."""

    name: str
    queue: str
    priority: int
    max_attempts: int | None
    expires_s: float | None
    headers: dict[str, Any]
    arguments: dict[str, Any]
    positional: list[str]
    open_ended: bool
    limited: bool
    is_unique: bool
    names: list[str]
    queues: list[str]
    key_ttl_s: int
    max_message_bytes: int


_name = attrgetter("name")


def register(conn: psycopg.Connection[Any], rows: Sequence[TaskRow]) -> None:
    """Write these tasks into the registry, those of other processes stay. Raises `LedgerUnavailable`."""
    texts = ("headers", "arguments", "positional")
    # In one order, so that two that start together do not wait for each other in a circle.
    values = [{**asdict(row), **{name: encode(getattr(row, name)).decode() for name in texts}} for row in sorted(rows, key=_name)]
    with conn.transaction(), conn.cursor() as cursor:
        cursor.executemany(_REGISTER, values)
