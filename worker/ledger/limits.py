"""Limit policies: those of the settings, and those people set while the system runs, which stand before them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

import psycopg

from worker.cache import Region, outbox
from worker.db import repeatable
from worker.errors import InvalidLimit, LimitNotFound, LoadFailed, SettingsError
from worker.limits import Charge, Plan
from worker.limits.policy import Policy, checked, limiter_of, parse_policy, plan_of
from worker.limits.scope import scope
from worker.settings import settings
from worker.telemetry import OUTAGES, log

logger = log(__name__)

_COLUMNS = ("name", "kind", "scope", "rate", "on_outage", "enabled")
_LIST = f"SELECT {', '.join(_COLUMNS)} FROM limit_policies ORDER BY name"
_NAMES = "SELECT name FROM limit_policies"
_SET = """
INSERT INTO limit_policies (name, kind, scope, rate, on_outage, enabled)
VALUES (%(name)s, %(kind)s, %(scope)s, %(rate)s, %(on_outage)s, %(enabled)s)
ON CONFLICT (name) DO UPDATE
   SET kind = excluded.kind, scope = excluded.scope, rate = excluded.rate, on_outage = excluded.on_outage,
       enabled = excluded.enabled, updated_at = clock_timestamp()
"""
#: For a while after a change whoever accepts jobs may still go by what was before.
_CHANGED = "SELECT max(updated_at) + interval '2 seconds' FROM limit_policies WHERE kind = 'limit' AND enabled"
_REMOVE = "DELETE FROM limit_policies WHERE name = %s RETURNING name"

#: A change invalidates; the life bounds what a change by hand in the database takes to be seen.
_kept = Region("limit-policies", ttl=10.0, type=list[Policy])
#: Seconds a process trusts what it last read, for every job that is accepted asks: a change holds everywhere a second later.
_TRUST_S = 1.0

_seen: tuple[float, list[Policy]] = (0.0, [])
_changed: tuple[float, datetime | None] = (0.0, None)


def policies() -> list[Policy]:
    """Return all policies by name, those of the table before those of the setting `limits` with the same name.

    Raises `LedgerUnavailable` when neither the cache nor Postgres answers, `SettingsError` for a setting that is no policy.
    """
    global _seen
    until, seen = _seen
    if time.monotonic() < until:
        return seen
    try:
        told: list[Policy] = _kept.get_or_load("all", lambda: repeatable(_read))
    except LoadFailed:  # A moment ago, to somebody else: Postgres itself says what is wrong with it.
        told = repeatable(_read)
    found = {**_of_settings(tuple(settings().limits)), **{policy["name"]: policy for policy in told}}
    _seen = (time.monotonic() + _TRUST_S, sorted(found.values(), key=lambda policy: policy["name"]))
    return _seen[1]


def look_again() -> None:
    """Let this process read the policies anew."""
    global _seen, _changed
    _seen, _changed = (0.0, []), (0.0, None)


def changed_at() -> datetime | None:
    """Return when a limit of the table was last set; a job accepted before may not know of it. None when none is set.

    Raises `LedgerUnavailable`.
    """
    global _changed
    until, seen = _changed
    if time.monotonic() >= until:
        row = repeatable(lambda conn: conn.execute(_CHANGED).fetchone())
        seen = row[0] if row else None
        _changed = (time.monotonic() + _TRUST_S, seen)
    return seen


@lru_cache(maxsize=4)
def _of_settings(texts: tuple[str, ...]) -> Mapping[str, Policy]:
    try:
        return {policy["name"]: policy for policy in map(parse_policy, texts)}
    except InvalidLimit as exc:
        raise SettingsError(f"HOLDFAST_LIMITS: {exc}") from exc


def _read(conn: psycopg.Connection[Any]) -> list[Policy]:
    rows: list[Any] = [dict(zip(_COLUMNS, row, strict=True)) for row in conn.execute(_LIST).fetchall()]
    return [row for row in rows if row["kind"] == "budget" or _is_readable(row)]


def _is_readable(policy: Policy) -> bool:
    """Tell whether a limit is one. A row written by hand and wrongly must not stop every job; a budget refuses its own calls."""
    try:
        checked(policy)
    except InvalidLimit as exc:
        OUTAGES.labels("limits", "policy left out").inc()
        logger.error("a limit policy cannot be read and is left out", policy=policy["name"], error=str(exc))
        return False
    return True


def kept_names(conn: psycopg.Connection[Any]) -> set[str]:
    """Return the names of the policies of the table; the others are the setting's."""
    return {row[0] for row in conn.execute(_NAMES).fetchall()}


def plan() -> Plan:
    """Return the budgets that hold now. Raises as `policies`."""
    return plan_of(policies())


def charges_for(known: Mapping[str, Any]) -> list[Charge]:
    """Return what a call must be charged for, by the policies that fit it; `known` is what `Scope.key` may name."""
    found = []
    for policy in policies():
        if policy["kind"] == "limit" and policy["enabled"]:
            key = scope(policy["scope"]).key(known)
            if key is not None:
                found.append(limiter_of(policy["name"], policy["rate"], policy["on_outage"]).on(key))
    return found


def charge_on(name: str, key: str) -> Charge | None:
    """Return one unit on a limit by its name, or None when no policy has it."""
    found = next((p for p in policies() if p["name"] == name and p["kind"] == "limit"), None)
    return found and limiter_of(name, found["rate"], found["on_outage"]).on(key)


def put(conn: psycopg.Connection[Any], policy: Policy) -> Policy:
    """Set a policy, new or in the place of the one with its name, and return it as it is kept. Raises `InvalidLimit`.

    It holds in this process at once, and in every other a second after it has committed.
    """
    policy = checked(policy)
    with outbox.transaction(conn) as changes:
        conn.execute(_SET, policy)
        changes.add(keys=[_kept.key("all")])
    look_again()
    return policy


def remove(conn: psycopg.Connection[Any], name: str) -> None:
    """Remove a policy of the table; one of the settings with its name holds again. Raises `LimitNotFound`."""
    with outbox.transaction(conn) as changes:
        if conn.execute(_REMOVE, (name.replace("\0", "\\0"),)).fetchone() is None:
            raise LimitNotFound(f"no limit policy {name!r} is set; see `holdfast limits ls`", name=name)
        changes.add(keys=[_kept.key("all")])
    look_again()
