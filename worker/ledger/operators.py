"""The operators of the console: their passwords, roles, and whether they may still log in."""

from __future__ import annotations

import re
import secrets
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec
import psycopg
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from worker.errors import InvalidOperator, OperatorNotFound
from worker.live.sessions import digest_of
from worker.store import coordination, keys

#: What an operator may do, each all that those before may: look; act on jobs and queues; say who else may do what.
ROLES = ("viewer", "operator", "admin")
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
#: Shortest and longest password in characters: OWASP asks for 8 or more where nobody is made to remember rules, and hashing a
#: longer text than the second costs memory for nothing.
_SHORTEST, LONGEST = 10, 256
#: Seconds for which a link counts that logs in once.
LINK_S = 900

_COLUMNS = ("name", "role", "created_at", "changed_at", "disabled_at")
_LIST = f"SELECT {', '.join(_COLUMNS)} FROM operators ORDER BY name"
_FIND = f"SELECT {', '.join(_COLUMNS)} FROM operators WHERE name = %s"
_HASH = "SELECT password_hash FROM operators WHERE name = %s"
_ADD = """
INSERT INTO operators (name, password_hash, role) VALUES (%(name)s, %(hash)s, %(role)s)
ON CONFLICT (name) DO NOTHING RETURNING name
"""
_REMOVE = "DELETE FROM operators WHERE name = %s RETURNING name"
_SET_ROLE = "UPDATE operators SET role = %(role)s WHERE name = %(name)s RETURNING name"
_CHANGE = """
UPDATE operators SET password_hash = %(hash)s, changed_at = clock_timestamp() WHERE name = %(name)s RETURNING name
"""
_DISABLE = """
UPDATE operators SET disabled_at = clock_timestamp(), changed_at = clock_timestamp() WHERE name = %(name)s RETURNING name
"""
_ENABLE = "UPDATE operators SET disabled_at = NULL WHERE name = %(name)s RETURNING name"
#: Changes of who is an admin are made one at a time, so that two cannot each leave the other as the last one.
_LOCK = "SELECT pg_advisory_xact_lock(4710922319)"
_ADMINS = "SELECT count(*) FROM operators WHERE role = 'admin' AND disabled_at IS NULL"


class Operator(msgspec.Struct, frozen=True):
    """An operator as requests are judged by."""

    name: str
    role: str
    created_at: datetime
    #: Sessions that began with another one count no more.
    changed_at: datetime
    disabled_at: datetime | None = None

    def may(self, role: str) -> bool:
        """Tell whether its role is this one or above it."""
        return ROLES.index(self.role) >= ROLES.index(role)


def find(conn: psycopg.Connection[Any], name: str) -> Operator | None:
    """Return an operator, disabled ones too; None when nobody has the name."""
    row = conn.execute(_FIND, (name.replace("\0", "\\0"),)).fetchone()
    return Operator(*row) if row else None


def get(conn: psycopg.Connection[Any], name: str) -> Operator:
    """Return an operator. Raises `OperatorNotFound`."""
    found = find(conn, name)
    if found is None:
        raise OperatorNotFound(f"no operator {name!r}; see `holdfast operators ls`", name=name)
    return found


def listed(conn: psycopg.Connection[Any]) -> list[Operator]:
    """Return all operators by name."""
    return [Operator(*row) for row in conn.execute(_LIST).fetchall()]


def add(conn: psycopg.Connection[Any], name: str, role: str, password: str | None = None) -> str:
    """Add an operator and return the password, made up unless one is given.

    Raises `InvalidOperator`, also when the name is taken.
    """
    if not _NAME.fullmatch(name):
        raise InvalidOperator(f"name: {name!r} is not 1 to 64 letters, digits and _ . @ -", field="name")
    password = _checked_password(password)
    if conn.execute(_ADD, {"name": name, "hash": _hasher().hash(password), "role": _checked_role(role)}).fetchone() is None:
        raise InvalidOperator(f"name: there is an operator {name!r} already; choose another name", field="name")
    return password


def remove(conn: psycopg.Connection[Any], name: str) -> None:
    """Remove an operator; its sessions count no more. Raises `OperatorNotFound`."""
    _done(conn.execute(_REMOVE, (name,)).fetchone(), name)


def set_role(conn: psycopg.Connection[Any], name: str, role: str) -> None:
    """Give an operator another role, from its next request on. Raises `OperatorNotFound`, `InvalidOperator`."""
    _done(conn.execute(_SET_ROLE, {"name": name, "role": _checked_role(role)}).fetchone(), name)


def set_password(conn: psycopg.Connection[Any], name: str, password: str | None = None) -> str:
    """Give an operator another password and return it, made up unless one is given; its sessions count no more.

    Raises `OperatorNotFound`, `InvalidOperator`.
    """
    password = _checked_password(password)
    _done(conn.execute(_CHANGE, {"name": name, "hash": _hasher().hash(password)}).fetchone(), name)
    return password


def set_disabled(conn: psycopg.Connection[Any], name: str, disabled: bool) -> None:
    """Let an operator in no more, from its next request on, or in again. Raises `OperatorNotFound`."""
    _done(conn.execute(_DISABLE if disabled else _ENABLE, {"name": name}).fetchone(), name)


def keep_an_admin(conn: psycopg.Connection[Any]) -> None:
    """Refuse a transaction, begun with `one_at_a_time`, that leaves nobody who can change operators. Raises `InvalidOperator`."""
    row = conn.execute(_ADMINS).fetchone()
    if row is None or not row[0]:
        raise InvalidOperator("role: this would leave no admin who can log in; make somebody else one first", field="role")


def one_at_a_time(conn: psycopg.Connection[Any]) -> None:
    """Wait, inside a transaction, until no other changes operators this way."""
    conn.execute(_LOCK)


def verify(conn: psycopg.Connection[Any], name: str, password: str) -> Operator | None:
    """Return the operator whose name and password these are; None for any other, and for one that is disabled.

    It takes as long for a name that nobody has.
    """
    row = conn.execute(_HASH, (name.replace("\0", "\\0"),)).fetchone()
    nobody = _nobody()
    try:
        _hasher().verify(row[0] if row else nobody, password[:LONGEST])
    except (VerificationError, InvalidHashError):
        return None
    found = find(conn, name)
    return found if found and found.disabled_at is None and len(password) <= LONGEST else None


@lru_cache(maxsize=1)
def _hasher() -> PasswordHasher:
    return PasswordHasher()  # argon2id with the parameters of RFC 9106 for machines with little memory to spare: 64 MiB


@lru_cache(maxsize=1)
def _nobody() -> str:
    """Return the hash of a password that nobody knows, to be compared with where there is no operator."""
    return _hasher().hash(secrets.token_urlsafe())


def _done(row: tuple[Any, ...] | None, name: str) -> None:
    if row is None:
        raise OperatorNotFound(f"no operator {name!r}; see `holdfast operators ls`", name=name)


def _checked_role(role: str) -> str:
    if role not in ROLES:
        raise InvalidOperator(f"role: {role!r} is none of {', '.join(ROLES)}", field="role")
    return role


def _checked_password(password: str | None) -> str:
    if password is None:
        return secrets.token_urlsafe(15)
    if not _SHORTEST <= len(password) <= LONGEST:
        raise InvalidOperator(f"password: it has {len(password)} characters; give {_SHORTEST} to {LONGEST}", field="password")
    return password


# ---- links that log in once


def make_link(name: str) -> str:
    """Return a token that logs an operator in once, within `LINK_S` seconds. Raises `StoreUnavailable`.

    **Guarantee:** it counts once, whoever uses it at the same moment, and never again; a Redis that loses its memory forgets it.
    """
    token = secrets.token_urlsafe(24)
    with coordination().use() as client:
        client.set(keys.login_link(digest_of(token)), name, ex=LINK_S)
    return token


def use_link(conn: psycopg.Connection[Any], token: str) -> Operator | None:
    """Return the operator that a token logs in, and let it count no more; None for one that does not count.

    Raises `StoreUnavailable`.
    """
    with coordination().use() as client:
        name: Any = client.getdel(keys.login_link(digest_of(token)))
    found = find(conn, name.decode()) if name else None
    return found if found and found.disabled_at is None else None
