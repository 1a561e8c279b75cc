"""What budgets stand at by the record: loaded into a Redis that lost it, and what it holds forgotten where that is in doubt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import psycopg

from worker.db import statement
from worker.ledger import limits
from worker.limits import Budgets, OpenCall, Spend, Standing, Window
from worker.limits.plan import levels
from worker.telemetry import OUTAGES, log

logger = log(__name__)

#: One rebuilds a tree at a time; the second half of the lock is the tree's.
_LOCK_CLASS = 471_092_231
_LOCK = "SELECT pg_advisory_xact_lock(%s, hashtext(%s))"

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


def forget(subject: str) -> None:
    """Let the windows of a subject's whole tree be loaded out of the record again. Raises `StoreUnavailable`."""
    with statement() as conn:
        forget_tree(conn, levels(subject)[0])


def forget_tree(conn: psycopg.Connection[Any], root: str) -> None:
    """Let the windows of a tree be loaded out of the record again, and none while this goes on. Raises `StoreUnavailable`."""
    with conn.transaction():
        conn.execute(_LOCK, (_LOCK_CLASS, root))
        Budgets(limits.plan()).forget(root)
