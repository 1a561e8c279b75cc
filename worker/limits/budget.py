"""Budgets: an estimate is reserved in one round trip, what was really spent is settled in another, each at most once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from worker.clock import uuid7
from worker.errors import BudgetNotRebuilt, CostTooHigh, InvalidLimit, StoreUnavailable, Unpriced
from worker.limits.decision import Decision
from worker.limits.plan import AMOUNTS, Period, Plan, Spend, Window, levels
from worker.store import Script, keys, limits, script
from worker.telemetry import BUDGETED, LIMIT_OUTAGES

#: Seconds after which to come again when only open calls stand in the way: any of them may be settled soon.
_OPEN_S = 1.0
_AWAY_S = 1.0
#: Characters of an id: it stands in keys and indexes.
_LONGEST_ID = 255
#: The shortest and the longest lease of a call, in seconds.
_LEASES_S = (0.1, 86_400.0)

_PARTS = ("reserve", "settle", "renew", "load", "peek")
_reserve, _settle, _renew, _load, _peek = (script(f"budget_tree+budget_{part}") for part in _PARTS)


class Outcome(StrEnum):
    """What became of ending a call."""

    SETTLED = "settled"
    RELEASED = "released"
    #: Settled after its lease had ended: its spend counts all the same.
    LATE = "late"
    #: It had been ended before; nothing was counted twice.
    AGAIN = "again"
    #: Redis does not know the call: it lost its memory, or the call ended long ago.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Reservation:
    """An estimate that is reserved, or the refusal of one. True when it is reserved."""

    id: str
    subject: str
    estimate: Spend
    lease_s: float
    decision: Decision

    def __bool__(self) -> bool:
        return self.decision.allowed


class Standing(NamedTuple):
    """What a window stands at by the record: what was settled in each sub-bucket."""

    window: Window
    #: Number of the sub-bucket: seconds, minutes or days since 1970, or months since the year 0; then what was spent in it.
    buckets: Sequence[tuple[int, Spend]]


class OpenCall(NamedTuple):
    """A call that is reserved by the record and not settled."""

    id: str
    #: Seconds its lease still lasts.
    lease_s: float
    estimate: Spend
    #: The sub-buckets it counts in.
    places: Sequence[tuple[Window, int]]


class Cap(NamedTuple):
    """The most requests, tokens and micros of one window; None for no bound."""

    window: Window
    most: tuple[int | None, int | None, int | None]

    def check(self, estimate: Spend) -> None:
        """Raise `CostTooHigh` for an estimate that never fits."""
        for name, cost, most in zip(AMOUNTS, _amounts(estimate), self.most, strict=True):
            if most is not None and cost > most:
                raise CostTooHigh(
                    f"{name}={cost}: the budget of {self.window.subject!r} never admits more than {most} a {self.window.period}",
                    cost=cost, most=most,
                )  # fmt: skip

    def refusal(self, amount: int, left: int, wait_us: int) -> Decision:
        """Return the refusal of one of its amounts."""
        rate = f"{self.most[amount]} {AMOUNTS[amount]}/{self.window.period}"
        return Decision(False, self.window.subject, rate, left, wait_us / 1_000_000 or _OPEN_S, 0.0)


class Level(NamedTuple):
    """What a window stands at in Redis: all that counts, and how much of it is open."""

    spent: Spend
    open: Spend


class Budgets:
    """Budgets of a tree of subjects, such as organisation, user and key.

        budgets = Budgets(Plan({"org:*": "5000000 micros/day", "org:*/user:*": "60 requests/minute, 100000 tokens/minute"}))
        reservation = budgets.try_reserve("org:acme/user:7", Spend(tokens=1200, micros=900))
        if reservation:
            budgets.settle(reservation.subject, reservation.id, Spend(tokens=830, micros=610))

    **Guarantee:** what is settled and what is reserved together never exceed a cap when a call is admitted, on any level and
    whatever the concurrency; only a call that takes more than its estimate can. Each call counts once, however often its reserve
    or settle is repeated; a dead caller's reservation ends with its lease, and a settle after that still counts. While Redis does
    not answer nothing is admitted. A Redis that lost its memory, was restarted or failed over admits nothing in a window before
    that was loaded from the record again: `BudgetNotRebuilt`.
    """

    def __init__(self, plan: Plan, *, lease_s: float = 120.0) -> None:
        self.plan = plan
        self.lease_s = _checked_lease(lease_s)

    def try_reserve(
        self, subject: str, estimate: Spend, *, id: str | None = None, lease_s: float | None = None
    ) -> Reservation:
        """Reserve an estimate on every level, or tell which refuses.

        Raises `BudgetNotRebuilt` (with `root` and `windows`) when windows must be loaded first, `Unpriced` when money is bounded
        and the estimate has no price, `CostTooHigh` when it never fits, `InvalidLimit` for bad input and an id that has ended.
        """
        caps = self.check(subject, estimate)
        lease_s, admitted = _checked_lease(lease_s or self.lease_s), Decision(True, subject, "", 0, 0.0, 0.0)
        call = Reservation(checked_id("id", id or uuid7()), subject, estimate, lease_s, admitted)
        values = [call.id, round(call.lease_s * 1000), *_amounts(estimate)]
        for window, most in caps:
            values += [*window, *("" if amount is None else amount for amount in most)]
        try:
            told, *rest = self._ask(_reserve, subject, values)
        except StoreUnavailable:
            LIMIT_OUTAGES.labels("budget", "closed").inc()
            return _refused(call, Decision(False, subject, "", 0, _AWAY_S, 0.0, "closed"))
        if told == b"load":
            windows = [Window(period.decode(), name.decode()) for period, name in zip(*[iter(rest)] * 2, strict=True)]
            raise BudgetNotRebuilt(root=levels(subject)[0], windows=windows)
        if told == b"ended":
            raise InvalidLimit(f"id: call {call.id!r} is {rest[0].decode()}; reserve under a new id", id=call.id)
        BUDGETED.labels("reserved" if told == b"yes" else "refused").inc()
        if told == b"yes":
            return call
        which, amount, left, wait_us = rest
        return _refused(call, caps[which - 1].refusal(amount - 1, left, wait_us))

    def reserve(self, subject: str, estimate: Spend, *, id: str | None = None, lease_s: float | None = None) -> Reservation:
        """Reserve an estimate as `try_reserve`. Raises `LimitExceeded` with `limit` and `retry_after` when it is refused."""
        reservation = self.try_reserve(subject, estimate, id=id, lease_s=lease_s)
        reservation.decision.check()
        return reservation

    def check(self, subject: str, spend: Spend, *, fits: bool = True) -> list[Cap]:
        """Return the caps a spend falls under, root first. Raises as `try_reserve`; `fits=False` for what is spent already."""
        budgets = self.plan.budgets_of(subject)
        if spend.check().micros is None and any(budget.has_money for _, budget in budgets):
            raise Unpriced(
                f"a budget of money holds for {subject!r}, and the call has no price; it is refused, not free", subject=subject
            )
        caps = [Cap(Window(period, level), most) for level, budget in budgets for period, most in budget.caps]
        for cap in caps if fits else ():
            cap.check(spend)
        return caps

    def settle(self, subject: str, id: str, actual: Spend) -> Outcome:
        """Put what a call really spent in the place of its estimate. Raises `StoreUnavailable`, `Unpriced`, `InvalidLimit`."""
        self.check(subject, actual, fits=False)
        return self._end(subject, id, Outcome.SETTLED, actual)

    def release(self, subject: str, id: str) -> Outcome:
        """Give a reservation back whose call was not made. Raises `StoreUnavailable`."""
        return self._end(subject, id, Outcome.RELEASED, Spend(0, 0, 0))

    def renew(self, subject: str, id: str, lease_s: float | None = None) -> bool:
        """Prolong the lease of a call that takes long; tell whether it was still open. Raises `StoreUnavailable`."""
        return bool(self._ask(_renew, subject, [id, round(_checked_lease(lease_s or self.lease_s) * 1000)]))

    def peek(self, subject: str, periods: Sequence[Period] = ("minute", "hour", "day", "month")) -> dict[Window, Level]:
        """Return what each known window of the subject and those above it stands at. Raises `StoreUnavailable`."""
        windows = [Window(period, level) for level in levels(subject) for period in periods]
        rows = self._ask(_peek, subject, [value for window in windows for value in window])[1:]
        return {window: Level(Spend(*row[:3]), Spend(*row[3:])) for window, row in zip(windows, rows, strict=True) if row}

    def open_calls(self, root: str) -> int:
        """Return how many calls of a tree are reserved and not ended. Raises `StoreUnavailable`."""
        return int(self._ask(_peek, root, [])[0])

    def load(self, root: str, standings: Sequence[Standing], calls: Sequence[OpenCall] = ()) -> int:
        """Put windows that Redis does not know into it, as the record has them; return how many were new.

        Keep others from loading the same tree from before you read the record until this returns. Raises `StoreUnavailable`.
        """
        windows = [[*window, [[number, *_amounts(spend)] for number, spend in buckets]] for window, buckets in standings]
        rows = [
            [call.id, round(call.lease_s * 1000), *_amounts(call.estimate), [[*window, number] for window, number in call.places]]
            for call in calls
        ]
        return int(self._ask(_load, root, [json.dumps(windows), json.dumps(rows)]))

    def forget(self, root: str) -> None:
        """Forget what Redis knows of a tree; nothing is admitted before it is loaded again. Raises `StoreUnavailable`."""
        limits().ask([("DEL", *_keys(root))])

    def _end(self, subject: str, id: str, verb: Outcome, actual: Spend) -> Outcome:
        outcome = Outcome(self._ask(_settle, subject, [id, verb.value, *_amounts(actual)]).decode())
        BUDGETED.labels(outcome.value).inc()
        return outcome

    def _ask(self, what: Script, subject: str, values: list[Any]) -> Any:
        (answer,) = limits().ask([what.command(_keys(subject), values)])
        return answer


def _keys(subject: str) -> list[str]:
    root = levels(subject)[0]
    return [keys.budget(root), keys.budget_calls(root)]


def _amounts(spend: Spend) -> tuple[int, int, int]:
    return spend.requests, spend.tokens, spend.micros or 0


def _refused(call: Reservation, decision: Decision) -> Reservation:
    return Reservation(call.id, call.subject, call.estimate, call.lease_s, decision)


def checked_id(name: str, text: str) -> str:
    """Return what a call is known by, or its model or job. Raises `InvalidLimit` for what no server could keep."""
    if not isinstance(text, str) or not 1 <= len(text) <= _LONGEST_ID or not text.isprintable():
        raise InvalidLimit(f"{name}: {repr(text)[:60]} is not a line of 1 to {_LONGEST_ID} printable characters")
    return text


def _checked_lease(lease_s: float) -> float:
    if isinstance(lease_s, bool) or not isinstance(lease_s, int | float) or not _LEASES_S[0] <= lease_s <= _LEASES_S[1]:
        raise InvalidLimit(f"lease_s={lease_s!r}: give seconds from {_LEASES_S[0]:g} to {_LEASES_S[1]:g}")
    return float(lease_s)
