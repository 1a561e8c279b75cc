"""Metered calls on record: what is reserved and what was spent is a row before Redis counts it, so budgets survive Redis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from worker.clock import uuid7
from worker.db import statement
from worker.errors import BudgetNotRebuilt, InvalidLimit, StoreUnavailable
from worker.ledger import limits
from worker.limits import Budgets, OpenCall, Outcome, Reservation, Spend, Standing, Window
from worker.limits.plan import levels
from worker.telemetry import OUTAGES, log

logger = log(__name__)

#: One rebuilds a tree at a time; the second half of the lock is the tree's.
_LOCK_CLASS = 471_092_231
_LOCK = "SELECT pg_advisory_xact_lock(%s, hashtext(%s))"
#: Seconds after which a spend that Redis has not counted is told again by somebody else.
_OWN_S = 5.0
#: Times a reservation is tried whose windows had to be loaded: others may make Redis forget meanwhile.
_TRIES = 5
#: Spends that one round tells.
BATCH = 500

_RESERVE = """
INSERT INTO usage_reservations (id, root, subject, model, job_id, requests, tokens, micros, expires_at)
VALUES (%(id)s, %(root)s, %(subject)s, %(model)s, %(job_id)s, %(requests)s, %(tokens)s, %(micros)s,
        clock_timestamp() + %(lease_s)s * interval '1 second')
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

#: The number of the sub-bucket a moment falls into, as `budget_tree.lua` counts them, and from when on a period may still count
#: something; a minute more than it takes, for the clocks of two servers.
_NUMBER = """
CASE w.period WHEN 'minute' THEN floor(extract(epoch FROM {at}))
              WHEN 'hour' THEN floor(extract(epoch FROM {at}) / 60)
              WHEN 'day' THEN floor(extract(epoch FROM {at}) / 86400)
              ELSE extract(year FROM {at} AT TIME ZONE 'UTC') * 12 + extract(month FROM {at} AT TIME ZONE 'UTC') - 1 END::int8
"""
_SINCE = """
CASE w.period WHEN 'minute' THEN clock_timestamp() - interval '2 minutes'
              WHEN 'hour' THEN clock_timestamp() - interval '62 minutes'
              ELSE date_trunc(w.period, clock_timestamp(), 'UTC') - interval '1 minute' END
"""
#: One statement, so that no call is settled between the reading of both tables.
_STANDINGS = f"""
WITH w AS MATERIALIZED (
  SELECT period, subject, {_SINCE} AS since FROM unnest(%(periods)s::text[], %(subjects)s::text[]) AS w(period, subject))
SELECT w.period, w.subject, {_NUMBER.format(at='u.reserved_at')} AS number, NULL, NULL::float8,
       sum(u.requests)::int8, sum(u.tokens_in + u.tokens_out)::int8, sum(u.micros)::int8
  FROM w JOIN usage u ON u.root = %(root)s AND u.reserved_at >= w.since AND starts_with(u.subject || '/', w.subject || '/')
 GROUP BY 1, 2, 3
UNION ALL
SELECT w.period, w.subject, {_NUMBER.format(at='r.reserved_at')}, r.id,
       extract(epoch FROM r.expires_at - clock_timestamp())::float8, r.requests, r.tokens, coalesce(r.micros, 0)
  FROM w JOIN usage_reservations r
    ON r.root = %(root)s AND r.expires_at > clock_timestamp() AND starts_with(r.subject || '/', w.subject || '/')
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

    Raises `LedgerUnavailable`, and `Unpriced`, `CostTooHigh` and `InvalidLimit` as `Budgets.try_reserve`.

    **Guarantee:** what Redis admits is on record before, so that a Redis which loses its memory at any moment is given it back,
    and admits nothing before that. With either server away nothing is admitted.
    """
    budgets = Budgets(limits.plan(), lease_s=lease_s)
    budgets.check(subject, estimate)
    call_id, root = id or uuid7(), levels(subject)[0]
    values = {"id": call_id, "root": root, "subject": subject, "model": model, "job_id": job_id, "lease_s": lease_s,
              **estimate._asdict()}  # fmt: skip
    with statement() as conn:
        is_new = conn.execute(_RESERVE, values).fetchone() is not None
    admitted = False
    try:
        reservation = _decide(budgets, subject, estimate, call_id)
        admitted = bool(reservation)
    finally:
        if is_new and not admitted:
            with statement() as conn:
                conn.execute(_DROP, (call_id,))
    return reservation


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


def rebuild(root: str, windows: Sequence[Window]) -> int:
    """Load windows of a tree into Redis out of the record; return how many it did not have. Raises `StoreUnavailable`."""
    with statement() as conn, conn.transaction():
        conn.execute(_LOCK, (_LOCK_CLASS, root))
        loaded = Budgets(limits.plan()).load(root, *standings(conn, root, windows))
    OUTAGES.labels("budget", "rebuilt").inc(loaded)
    logger.info("windows of a budget were loaded out of the record", root=root, windows=loaded)
    return loaded


def standings(conn: psycopg.Connection[Any], root: str, windows: Sequence[Window]) -> tuple[list[Standing], list[OpenCall]]:
    """Return what windows stand at by the record, and the open calls that count in them."""
    values = {"root": root, "periods": [w.period for w in windows], "subjects": [w.subject for w in windows]}
    spent: dict[Window, list[tuple[int, Spend]]] = {window: [] for window in windows}
    calls: dict[str, tuple[float, Spend]] = {}
    places: dict[str, list[tuple[Window, int]]] = defaultdict(list)
    for period, subject, number, call_id, lease_s, *amounts in conn.execute(_STANDINGS, values).fetchall():
        window = Window(period, subject)
        if call_id is None:
            spent[window].append((number, Spend(*amounts)))
        else:
            calls[call_id] = (lease_s, Spend(*amounts))
            places[call_id].append((window, number))
    return (
        [Standing(window, buckets) for window, buckets in spent.items()],
        [OpenCall(call_id, lease_s, estimate, places[call_id]) for call_id, (lease_s, estimate) in calls.items()],
    )


def settle(call_id: str, actual: Actual) -> Outcome:
    """Record what a call really took, once, and have Redis count it; late ones too.

    Raises `InvalidLimit` for a call nobody reserved, `Unpriced` as `reserve`, `LedgerUnavailable` when nothing was recorded. When
    Redis is away it is told later.
    """
    actual.check()
    with statement() as conn:
        reserved = conn.execute(_RESERVED, (call_id,)).fetchone()
        if reserved:
            Budgets(limits.plan()).check(reserved[0], actual.spend, fits=False)
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
        return Budgets(limits.plan()).release(row[0], call_id)
    except StoreUnavailable:
        OUTAGES.labels("budget", "runs out").inc()
        return Outcome.RELEASED


def renew(call_id: str, lease_s: float) -> bool:
    """Prolong the lease of a call that takes long; tell whether it is open. Raises `LedgerUnavailable`, `StoreUnavailable`."""
    with statement() as conn:
        row = conn.execute(_RENEW, {"id": call_id, "lease_s": lease_s}).fetchone()
    return row is not None and Budgets(limits.plan()).renew(row[0], call_id, lease_s)


def tell(call_id: str) -> Outcome:
    """Have Redis count a spend that is on record, once. Raises `InvalidLimit` when there is none, `LedgerUnavailable`."""
    with statement() as conn:
        row = conn.execute(_SPENT, (call_id,)).fetchone()
        if row is None:
            raise InvalidLimit(f"call {call_id!r} is not reserved; reserve before the call is made", id=call_id)
        subject, requests, tokens, micros, told = row
        if told:
            return Outcome.AGAIN
        budgets = Budgets(limits.plan())
        try:
            outcome = budgets.settle(subject, call_id, Spend(requests, tokens, micros))
            if outcome is Outcome.UNKNOWN:
                _forget(conn, budgets, levels(subject)[0])
        except StoreUnavailable:
            OUTAGES.labels("budget", "told later").inc()
            return Outcome.SETTLED
        conn.execute(_TOLD, (call_id,))
    return outcome


def _forget(conn: psycopg.Connection[Any], budgets: Budgets, root: str) -> None:
    # Whether the windows there count this call, nobody can say: let them be loaded again, and none while this goes on.
    with conn.transaction():
        conn.execute(_LOCK, (_LOCK_CLASS, root))
        budgets.forget(root)


def forget(subject: str) -> None:
    """Let the windows of a subject's whole tree be loaded out of the record again. Raises `StoreUnavailable`."""
    with statement() as conn:
        _forget(conn, Budgets(limits.plan()), levels(subject)[0])


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
