"""The callers of the HTTP gateway: their keys, scopes, allow-lists and rates, read through the cache."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Sequence
from fnmatch import fnmatchcase
from hashlib import sha256
from hmac import compare_digest
from typing import Any

import msgspec
import psycopg

from worker.cache import AsyncRegion, outbox
from worker.db import repeatable
from worker.errors import CallerNotFound, InvalidCaller, InvalidLimit
from worker.limits import parse_rate

#: What a caller may do: hand in and act on its own jobs; look at them; see and do everything.
SCOPES = ("enqueue", "read", "admin")
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_KEY = re.compile(r"hf_[a-z2-7]{8}_[A-Za-z0-9_-]{43}")
#: Characters of a key that are shown and looked up: `hf_` and eight more.
_PREFIX = 11
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
#: Compared with when nobody has the prefix, so that a wrong prefix costs what a wrong key does.
_NOBODY = bytes(32)

_LISTED = ("name", "prefix", "scopes", "tasks", "queues", "rate", "created_at", "rotated_at", "old_key_until", "revoked_at")
_LIST = f"SELECT {', '.join(_LISTED)} FROM callers ORDER BY name"
_ADD = """
INSERT INTO callers (name, prefix, key_hash, scopes, tasks, queues, rate)
VALUES (%(name)s, %(prefix)s, %(key_hash)s, %(scopes)s, %(tasks)s, %(queues)s, %(rate)s)
ON CONFLICT (name) DO NOTHING RETURNING name
"""
_FIND = """
SELECT name, CASE WHEN prefix = %(prefix)s THEN key_hash ELSE old_key_hash END, scopes, tasks, queues, rate
  FROM callers
 WHERE revoked_at IS NULL AND (prefix = %(prefix)s OR (old_prefix = %(prefix)s AND old_key_until > clock_timestamp()))
"""
_LOCK = "SELECT prefix, old_prefix, revoked_at FROM callers WHERE name = %s FOR UPDATE"
_ROTATE = """
UPDATE callers SET old_prefix = prefix, old_key_hash = key_hash,
       old_key_until = clock_timestamp() + %(overlap_s)s * interval '1 second',
       prefix = %(prefix)s, key_hash = %(key_hash)s, rotated_at = clock_timestamp()
 WHERE name = %(name)s
"""
_CHANGE = """
UPDATE callers SET scopes = %(scopes)s, tasks = %(tasks)s, queues = %(queues)s, rate = %(rate)s WHERE name = %(name)s
"""
_REVOKE = """
UPDATE callers SET revoked_at = coalesce(revoked_at, clock_timestamp()), old_key_until = NULL WHERE name = %s
"""


class Caller(msgspec.Struct, frozen=True):
    """A caller as requests are judged by."""

    name: str
    key_hash: bytes
    scopes: list[str]
    tasks: list[str] | None = None
    queues: list[str] | None = None
    rate: str | None = None

    @property
    def is_admin(self) -> bool:
        """Tell whether it may see and do everything."""
        return "admin" in self.scopes

    def may(self, scope: str) -> bool:
        """Tell whether it has a scope; admin has all."""
        return scope in self.scopes or self.is_admin

    def may_task(self, task: str) -> bool:
        """Tell whether its list of tasks holds this one; the tasks of Celery itself are nobody's."""
        return not task.startswith("celery.") and (self.tasks is None or any(fnmatchcase(task, form) for form in self.tasks))

    def may_queue(self, queue: str) -> bool:
        """Tell whether its list of queues holds this one."""
        return self.queues is None or queue in self.queues


#: By the prefix of the key. A change invalidates; should that be lost, it is seen all the same before a second is over, also with
#: what a gateway remembers by itself on top.
_known = AsyncRegion("callers", ttl=0.4, type=Caller, negative_ttl=0.4, max_back_off=0.4)


async def by_prefix(prefix: str) -> Caller | None:
    """Return the caller whose key begins like this. Raises `LedgerUnavailable`."""
    return await _known.get_or_load(prefix, lambda: asyncio.to_thread(repeatable, lambda conn: _read(conn, prefix)))


def prefix_of(key: str) -> str | None:
    """Return the part of a key that its caller is looked up by; None when it has not the form of a key."""
    return key[:_PREFIX] if _KEY.fullmatch(key) else None


def matches(key: str, caller: Caller | None) -> bool:
    """Tell whether a key is this caller's, in a time that does not depend on where they differ."""
    return compare_digest(sha256(key.encode()).digest(), caller.key_hash if caller else _NOBODY)


def _read(conn: psycopg.Connection[Any], prefix: str) -> Caller | None:
    row = conn.execute(_FIND, {"prefix": prefix}).fetchone()
    return Caller(row[0], bytes(row[1]), *row[2:]) if row else None


def add(
    conn: psycopg.Connection[Any],
    name: str,
    *,
    scopes: Sequence[str],
    tasks: Sequence[str] | None = None,
    queues: Sequence[str] | None = None,
    rate: str | None = None,
) -> str:
    """Add a caller and return its key, which cannot be had again. Raises `InvalidCaller`, also when the name is taken."""
    values = _checked(name, scopes, tasks, queues, rate)
    key = _new_key()
    with outbox.transaction(conn) as changes:
        if conn.execute(_ADD, {**values, **_stored(key)}).fetchone() is None:
            raise InvalidCaller(f"name: there is a caller {name!r} already; rotate its key, or choose another name", field="name")
        changes.add(keys=[_known.key(key[:_PREFIX])])
    return key


def change(
    conn: psycopg.Connection[Any],
    name: str,
    *,
    scopes: Sequence[str],
    tasks: Sequence[str] | None = None,
    queues: Sequence[str] | None = None,
    rate: str | None = None,
) -> None:
    """Let a caller do what is said here, and no more; its key stays. It holds within a second.

    Raises `CallerNotFound`, and `InvalidCaller`, also for one that was revoked.
    """
    values = _checked(name, scopes, tasks, queues, rate)
    with outbox.transaction(conn) as changes:
        prefix, old_prefix, revoked_at = _locked(conn, name)
        if revoked_at is not None:
            raise InvalidCaller(f"caller {name!r} was revoked; add another", field="name")
        conn.execute(_CHANGE, values)
        changes.add(keys=[_known.key(one) for one in (prefix, old_prefix) if one])


def rotate(conn: psycopg.Connection[Any], name: str, *, overlap_s: float) -> str:
    """Give a caller a new key and return it; the one before counts for `overlap_s` seconds more.

    Raises `CallerNotFound`, and `InvalidCaller` for one that was revoked.
    """
    if not 0 <= overlap_s <= 366 * 86_400:
        raise InvalidCaller(f"overlap: {overlap_s:g} seconds is not from 0 to a year", field="overlap")
    key = _new_key()
    with outbox.transaction(conn) as changes:
        prefix, old_prefix, revoked_at = _locked(conn, name)
        if revoked_at is not None:
            raise InvalidCaller(f"caller {name!r} was revoked; add another", field="name")
        conn.execute(_ROTATE, {"name": name, "overlap_s": overlap_s, **_stored(key)})
        changes.add(keys=[_known.key(one) for one in (prefix, old_prefix, key[:_PREFIX]) if one])
    return key


def revoke(conn: psycopg.Connection[Any], name: str) -> None:
    """Let the keys of a caller count no more; its jobs go on. Raises `CallerNotFound`."""
    with outbox.transaction(conn) as changes:
        prefix, old_prefix, _ = _locked(conn, name)
        conn.execute(_REVOKE, (name,))
        changes.add(keys=[_known.key(one) for one in (prefix, old_prefix) if one])


def list_callers(conn: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    """Return all callers by name, without anything their keys could be guessed from."""
    return [dict(zip(_LISTED, row, strict=True)) for row in conn.execute(_LIST).fetchall()]


def get(conn: psycopg.Connection[Any], name: str) -> dict[str, Any]:
    """Return a caller as `list_callers` does. Raises `CallerNotFound`."""
    found = next((row for row in list_callers(conn) if row["name"] == name), None)
    if found is None:
        raise CallerNotFound(f"no caller {name!r}; see `holdfast callers ls`", name=name)
    return found


def _locked(conn: psycopg.Connection[Any], name: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = conn.execute(_LOCK, (name.replace("\0", "\\0"),)).fetchone()
    if row is None:
        raise CallerNotFound(f"no caller {name!r}; see `holdfast callers ls`", name=name)
    return row


def _new_key() -> str:
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(_PREFIX - 3))
    return f"hf_{prefix}_{secrets.token_urlsafe(32)}"


def _stored(key: str) -> dict[str, Any]:
    return {"prefix": key[:_PREFIX], "key_hash": sha256(key.encode()).digest()}


def _checked(
    name: str, scopes: Sequence[str], tasks: Sequence[str] | None, queues: Sequence[str] | None, rate: str | None
) -> dict[str, Any]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidCaller(f"name: {name!r} is not 1 to 64 letters, digits and _ . @ -", field="name")
    if not scopes or set(scopes) - set(SCOPES):
        raise InvalidCaller(f"scopes: {list(scopes)!r} are not some of {', '.join(SCOPES)}", field="scopes")
    for field, given in (("tasks", tasks), ("queues", queues)):
        if wrong := [one for one in given or () if not one or len(one) > 255 or not one.isprintable()]:
            raise InvalidCaller(f"{field}: {wrong[0]!r} is not a line of 1 to 255 characters", field=field)
    try:
        said = None if rate is None else str(parse_rate(rate))
    except InvalidLimit as exc:
        raise InvalidCaller(str(exc), field="rate") from exc
    if said and "concurrent" in said:
        raise InvalidCaller(f"rate: {rate!r} counts calls at the same time; write a rate such as 100/second", field="rate")
    return {"name": name, "scopes": list(dict.fromkeys(scopes)), "tasks": list(tasks) if tasks else None,
            "queues": list(queues) if queues else None, "rate": said}  # fmt: skip
