"""What each budget stands at: what was spent of it, what is reserved, and what is left, by subject and period."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import psycopg

from worker.errors import InvalidLimit, StoreUnavailable
from worker.ledger import limits
from worker.ledger.standings import standings
from worker.ledger.statistics import aggregating
from worker.limits import Budgets, Level, Plan, Spend, Window
from worker.limits.plan import AMOUNTS, levels
from worker.telemetry import OUTAGES

_SUBJECTS = """
SELECT subject FROM (SELECT subject FROM usage WHERE reserved_at > clock_timestamp() - interval '31 days'
                     UNION SELECT subject FROM usage_reservations) AS known
 WHERE %(within)s = '' OR starts_with(subject || '/', %(within)s || '/') ORDER BY subject LIMIT %(limit)s
"""


class Balance(NamedTuple):
    """One amount of one subject's budget in one period; `open` is reserved and not settled."""

    subject: str
    period: str
    #: requests, tokens or micros
    amount: str
    most: int
    spent: int
    open: int

    @property
    def left(self) -> int:
        """What may still be reserved; a call that took more than its estimate can leave nothing."""
        return max(0, self.most - self.spent - self.open)


def subjects(conn: psycopg.Connection[Any], *, within: str = "", limit: int = 200) -> list[str]:
    """Return whose calls of the last month are on record, by name: those at or below `within`, or all."""
    with aggregating(conn):
        return [row[0] for row in conn.execute(_SUBJECTS, {"within": within, "limit": limit}).fetchall()]


def balances(conn: psycopg.Connection[Any], known: Iterable[str]) -> list[Balance]:
    """Return what the budgets of these subjects, and of those above them, stand at, by subject.

    A window that Redis does not know, or nobody can ask it about, is told out of the record.
    """
    plan = limits.plan()
    capped = {level: budget for subject in known for level, budget in _budgets(plan, subject)}
    wanted = [Window(period, level) for level, budget in sorted(capped.items()) for period, _ in budget.caps]
    found = _by_redis(plan, capped)
    found |= _by_record(conn, [window for window in wanted if window not in found])
    return [
        Balance(window.subject, window.period, name, most, getattr(settled, name) or 0, getattr(held, name) or 0)
        for window in wanted
        for settled, held in [found[window]]
        for name, most in zip(AMOUNTS, dict(capped[window.subject].caps)[window.period], strict=True)
        if most is not None
    ]


def _budgets(plan: Plan, subject: str) -> list[Any]:
    try:
        return plan.budgets_of(subject)
    except InvalidLimit:  # written by hand
        return []


def _by_redis(plan: Plan, capped: Iterable[str]) -> dict[Window, tuple[Spend, Spend]]:
    """Return what is settled and what is open of each window that Redis knows."""
    levels_of: dict[Window, Level] = {}
    try:
        for subject in capped:
            levels_of |= Budgets(plan).peek(subject)
    except StoreUnavailable:
        OUTAGES.labels("budget list", "from the record").inc()
    return {window: (_less(level.spent, level.open), level.open) for window, level in levels_of.items()}


def _by_record(conn: psycopg.Connection[Any], windows: list[Window]) -> dict[Window, tuple[Spend, Spend]]:
    found = {window: (Spend(0, 0, 0), Spend(0, 0, 0)) for window in windows}
    for root in sorted({levels(window.subject)[0] for window in windows}):
        settled, calls = standings(conn, root, [window for window in windows if levels(window.subject)[0] == root])
        for window, buckets in settled:
            for _, spend in buckets:
                found[window] = (_sum(found[window][0], spend), found[window][1])
        for call in calls:
            for window, _ in call.places:
                found[window] = (found[window][0], _sum(found[window][1], call.estimate))
    return found


def _sum(one: Spend, other: Spend) -> Spend:
    return Spend(*(a + b for a, b in _pairs(one, other)))


def _less(one: Spend, other: Spend) -> Spend:
    return Spend(*(max(0, a - b) for a, b in _pairs(one, other)))


def _pairs(one: Spend, other: Spend) -> Iterator[tuple[int, int]]:
    return ((a or 0, b or 0) for a, b in zip(one, other, strict=True))
