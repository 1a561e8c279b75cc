"""Metered calls on record: what is reserved and what was spent is a row before Redis counts it, so budgets survive Redis."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from worker.clock import uuid7
from worker.db import statement
from worker.errors import BudgetNotRebuilt, InvalidLimit, StoreUnavailable
from worker.ledger import limits
from worker.ledger.standings import forget_tree, rebuild
from worker.limits import Budgets, Outcome, Plan, Reservation, Spend
from worker.limits.budget import checked_id
from worker.limits.plan import levels
from worker.telemetry import OUTAGES

#: Seconds after which a spend that Redis has not counted is told again by somebody else.
_OWN_S = 5.0
#: Times a reservation is tried whose windows had to be loaded: others may make Redis forget meanwhile.
_TRIES = 5
#: Spends that one round tells.
BATCH = 500
#: What ends a call: Redis knows what that counts in, and no budget may keep a spend from being counted.
_ENDING = Budgets(Plan({}))

_RESERVE = """
INSERT INTO usage_reservations (id, root, subject, model, job_id, requests, tokens, micros, expires_at)
SELECT %(id)s, %(root)s, %(subject)s, %(model)s, %(job_id)s, %(requests)s, %(tokens)s, %(micros)s,
       clock_timestamp() + %(lease_s)s * interval '1 second'
 WHERE NOT EXISTS (SELECT FROM usage WHERE reservation_id = %(id)s)
ON CONFLICT (id) DO NOTHING RETURNING id
"""
_DROP = "DELETE FROM usage_reservations WHERE id = %s RETURNING subject"
_RENEW = """
UPDATE usage_reservations SET expires_at = clock_timestamp() + %(lease_s)s * interval '1 second'
 WHERE id = %(id)s RETURNING subject
"""
#: It counts for the moment it was reserved at, in Redis as here.
_SETTLE = """
WITH gone AS (DELETE FROM usage_reservations WHERE id = %(id)s RETURNING *)
INSERT INTO usage (reservation_id, root, subject, model, job_id, requests, tokens_in, tokens_out, micros, reserved_at)
SELECT id, root, subject, model, job_id, %(requests)s, %(tokens_in)s, %(tokens_out)s, %(micros)s, reserved_at FROM gone
ON CONFLICT (reservation_id) DO NOTHING
RETURNING reservation_id
"""
_RESERVED = "SELECT subject FROM usage_reservations WHERE id = %s"
_SPENT = "SELECT subject, requests, tokens_in + tokens_out, micros, told FROM usage WHERE reservation_id = %s"
_TOLD = "UPDATE usage SET told = true WHERE reservation_id = %s"
_UNTOLD = """
SELECT reservation_id FROM usage WHERE NOT told AND settled_at < clock_timestamp() - %s * interval '1 second'
 ORDER BY settled_at LIMIT %s
"""

_PRUNE = "DELETE FROM usage_reservations WHERE expires_at < clock_timestamp() - interval '7 days'"

_BY = {"subject": "subject", "model": "model", "day": "(reserved_at AT TIME ZONE 'UTC')::date"}
_SUMS = """
SELECT {by}, sum(requests)::int8, sum(tokens_in)::int8, sum(tokens_out)::int8, sum(micros)::int8 FROM usage
 WHERE reserved_at >= %(since)s AND (%(subject)s::text IS NULL OR starts_with(subject || '/', %(subject)s || '/'))
 GROUP BY {groups} ORDER BY {groups} LIMIT %(limit)s
"""


class Actual(NamedTuple):
    """What a call really took. `micros` is None when it has no price."""

    tokens_in: int = 0
    tokens_out: int = 0
    micros: int | None = 0
    requests: int = 1

    @property
    def spend(self) -> Spend:
        """What of it budgets count."""
        return Spend(self.requests, self.tokens_in + self.tokens_out, self.micros)

    def check(self) -> Actual:
        """Return itself. Raises `InvalidLimit` unless it is whole numbers from 0."""
        Spend(self.requests, self.tokens_in, self.micros).check()
        Spend(0, self.tokens_out).check()
        self.spend.check()
        return self


def reserve(
    subject: str, estimate: Spend, *, id: str | None = None, model: str = "", job_id: str | None = None, lease_s: float = 120.0
) -> Reservation:
    """Reserve an estimate under the budgets that hold now, or tell which refuses. The same id again is the same call.

    Raises `LedgerUnavailable`, and `Unpriced`, `CostTooHigh` and `InvalidLimit` as `Budgets.try_reserve`; an id that is another
    subject's is refused as well.

    **Guarantee:** what Redis admits is on record before, so that a Redis which loses its memory at any moment is given it back,
    and admits nothing before that. With either server away nothing is admitted.
    """
    budgets = Budgets(limits.plan(), lease_s=lease_s)
    budgets.check(subject, estimate)
    call_id, root = checked_id("id", id or uuid7()), levels(subject)[0]
    for name, text in (("model", model), ("job_id", job_id)):
        checked_id(name, text or "-")
    values = {"id": call_id, "root": root, "subject": subject, "model": model, "job_id": job_id, "lease_s": lease_s,
              **estimate._asdict()}  # fmt: skip
    with statement() as conn:
        is_new = conn.execute(_RESERVE, values).fetchone() is not None
        if not is_new:
            _check_same(conn, call_id, subject)
    admitted = False
    try:
        reservation = _decide(budgets, subject, estimate, call_id)
        admitted = bool(reservation)
    finally:
        if is_new and not admitted:
            with statement() as conn:
                conn.execute(_DROP, (call_id,))
    return reservation


def _check_same(conn: psycopg.Connection[Any], call_id: str, subject: str) -> None:
    row = conn.execute(_RESERVED, (call_id,)).fetchone()
    if row is None:
        raise InvalidLimit(f"id: call {call_id!r} has ended; reserve under a new id", id=call_id)
    if row[0] != subject:
        raise InvalidLimit(f"id: call {call_id!r} is reserved for {row[0]!r}; reserve under a new id", id=call_id)


def _decide(budgets: Budgets, subject: str, estimate: Spend, call_id: str) -> Reservation:
    for _ in range(_TRIES):
        try:
            return budgets.try_reserve(subject, estimate, id=call_id)
        except BudgetNotRebuilt as exc:
            try:
                rebuild(exc.root, exc.windows)
            except StoreUnavailable:
                continue  # the next try is refused, as while Redis is away
    return budgets.try_reserve(subject, estimate, id=call_id)


def settle(call_id: str, actual: Actual) -> Outcome:
    """Record what a call really took, once, and have Redis count it; late ones too.

    A call without a price counts as free of charge: a budget of money that came while it was made cannot unmake it. Raises
    `InvalidLimit` for a call nobody reserved, `LedgerUnavailable` when nothing was recorded. When Redis is away it is told later.
    """
    actual.check()
    with statement() as conn:
        values = {**actual._asdict(), "id": call_id, "micros": actual.micros or 0}
        is_new = conn.execute(_SETTLE, values).fetchone() is not None
    outcome = tell(call_id)
    return outcome if is_new else Outcome.AGAIN


def release(call_id: str) -> Outcome:
    """Give a reservation back whose call was not made. Raises `LedgerUnavailable`; when Redis is away it ends with its lease."""
    with statement() as conn:
        row = conn.execute(_DROP, (call_id,)).fetchone()
    if row is None:
        return Outcome.AGAIN
    try:
        return _ENDING.release(row[0], call_id)
    except StoreUnavailable:
        OUTAGES.labels("budget", "runs out").inc()
        return Outcome.RELEASED


def renew(call_id: str, lease_s: float) -> bool:
    """Prolong the lease of a call that takes long; tell whether it is open. Raises `LedgerUnavailable`, `StoreUnavailable`."""
    with statement() as conn:
        row = conn.execute(_RENEW, {"id": call_id, "lease_s": lease_s}).fetchone()
    return row is not None and _ENDING.renew(row[0], call_id, lease_s)


def tell(call_id: str) -> Outcome:
    """Have Redis count a spend that is on record, once. Raises `InvalidLimit` when there is none, `LedgerUnavailable`."""
    with statement() as conn:
        row = conn.execute(_SPENT, (call_id,)).fetchone()
        if row is None:
            raise InvalidLimit(f"call {call_id!r} is not reserved; reserve before the call is made", id=call_id)
        subject, requests, tokens, micros, told = row
        if told:
            return Outcome.AGAIN
        try:
            outcome = _ENDING.settle(subject, call_id, Spend(requests, tokens, micros))
            if outcome is Outcome.UNKNOWN:
                forget_tree(conn, levels(subject)[0])  # whether the windows there count this call, nobody can say
        except StoreUnavailable:
            OUTAGES.labels("budget", "told later").inc()
            return Outcome.SETTLED
        conn.execute(_TOLD, (call_id,))
    return outcome


def tell_overdue(conn: psycopg.Connection[Any], limit: int = BATCH) -> int:
    """Tell Redis the spends whose caller could not; return how many. Raises `LedgerUnavailable`."""
    overdue = conn.execute(_UNTOLD, (_OWN_S, limit)).fetchall()
    for (call_id,) in overdue:
        tell(call_id)
    return len(overdue)


def prune(conn: psycopg.Connection[Any]) -> None:
    """Forget reservations whose callers have not been heard of for a week."""
    conn.execute(_PRUNE)


def totals(
    conn: psycopg.Connection[Any], *, by: Sequence[str], since: datetime, subject: str | None = None, limit: int = 1000
) -> list[dict[str, Any]]:
    """Return spend grouped by `subject`, `model` and `day` (of the UTC day of reservation), in that order of `by`."""
    if not by or set(by) - set(_BY):
        raise InvalidLimit(f"by: {list(by)!r} are not some of {', '.join(_BY)}")
    sql = _SUMS.format(by=", ".join(_BY[name] for name in by), groups=", ".join(str(n + 1) for n in range(len(by))))
    names = (*by, "requests", "tokens_in", "tokens_out", "micros")
    rows = conn.execute(sql, {"since": since, "subject": subject, "limit": limit}).fetchall()
    return [dict(zip(names, row, strict=True)) for row in rows]
