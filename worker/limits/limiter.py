"""Limits that decide in one round trip, one or several together, each with its word for the time when Redis is away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from secrets import token_hex

from worker.errors import StoreUnavailable
from worker.limits.decision import Decision, strictest
from worker.limits.limit import Charge, Limit, command_over, decisions_over, decisions_without, readings_over
from worker.limits.slots import Slot
from worker.store import limits


class Limiter(Limit):
    """A limit for each key: a host, a user, a model.

        per_host = Limiter("10/second", name="host", on_outage="local")
        decision = per_host.try_acquire("api.example.com")
        if not decision:
            print(decision.explain(), decision.retry_after_s)

    **Guarantee:** whatever the number of processes, their clocks and their timing, no window admits more than the rate says (see
    `Algorithm`), by the clock of Redis; a refusal is not charged. A charge whose answer was lost is counted though it was not
    used. A Redis that lost its memory begins with empty counters: for money use `Budget`. While Redis does not answer within
    `limits_timeout_ms`, `on_outage` decides.
    """

    def try_acquire(self, key: str = "", cost: int = 1, *, holder: str = "") -> Decision:
        """Charge the cost if it fits and tell. Raises `InvalidLimit`, and `CostTooHigh` for one that never fits.

        A limit that lends slots needs a `holder`, a text that is its own: the same one asking again holds its slot already, and
        gives it back by `release`.
        """
        command = self.command("take", key, cost, holder)
        try:
            (answer,) = limits().ask((command,))
        except StoreUnavailable:
            return self.without(key, cost, holder)
        return self.decision(key, answer)

    def acquire(self, key: str = "", cost: int = 1, *, holder: str = "") -> Decision:
        """Charge the cost. Raises `LimitExceeded` with `limit` and `retry_after` when it does not fit, else as `try_acquire`."""
        return self.try_acquire(key, cost, holder=holder).check()

    def peek(self, key: str = "", cost: int = 1) -> Decision:
        """Tell what would be said of the cost now, and charge nothing."""
        command = self.command("peek", key, cost, "?")
        try:
            (answer,) = limits().ask((command,))
        except StoreUnavailable:
            return self.without(key, cost, "?", take=False)
        return self.decision(key, answer)

    def reset(self, key: str = "") -> None:
        """Forget what was charged, and who holds slots. Raises `StoreUnavailable`."""
        limits().ask((("DEL", self.counter(key)),))

    @contextmanager
    def hold(self, key: str = "", cost: int = 1) -> Iterator[Slot]:
        """Hold slots of a concurrency limit for the length of a `with`. Raises `LimitExceeded` when there are none.

        **Guarantee:** a holder that dies gives its slots back within the lease of the rate. One that is cut off from Redis for
        longer than that may work beside another; `Slot.lost` tells.
        """
        holder = token_hex(8)
        decision = self.try_acquire(key, cost, holder=holder).check()
        with Slot([self.on(key, cost)], holder, decision) as slot:
            yield slot

    def release(self, key: str, holder: str, cost: int = 1) -> None:
        """Give a holder's slots back; while Redis is away they come back with the end of the lease."""
        release_all([self.on(key, cost)], holder)

    def on(self, key: str = "", cost: int = 1) -> Charge:
        """Return the cost on this limit, for `try_acquire_all`."""
        return Charge(self, key, cost)


def try_acquire_all(charges: Sequence[Charge], *, holder: str = "") -> Decision:
    """Charge several limits, all or none, in one round trip; return the strictest decision.

    Raises `InvalidLimit` and `CostTooHigh`. While Redis is away each limit's own policy decides its part.

    **Guarantee:** when one refuses none is charged, whoever else asks at the same moment.
    """
    return strictest(ask_all(charges, holder=holder))


def ask_all(charges: Sequence[Charge], *, holder: str = "", take: bool = True) -> list[Decision]:
    """Charge several limits as `try_acquire_all`, or only ask them; return what each says."""
    command = command_over(charges, "take" if take else "peek", holder)
    try:
        (answer,) = limits().ask((command,))
    except StoreUnavailable:
        return decisions_without(charges, holder, take=take)
    return decisions_over(charges, answer)


def ask_many(charges: Sequence[Charge], holders: Sequence[str]) -> list[Decision]:
    """Charge the same limits once for each holder, in order and in one round trip; return the strictest decision of each.

    All cost the same, so that whoever stands behind a refusal is refused as well, unless room came in that very moment.
    """
    commands = [command_over(charges, "take", holder) for holder in holders]
    try:
        answers = limits().ask(commands) if commands else []
    except StoreUnavailable:
        return [strictest(decisions_without(charges, holder)) for holder in holders]
    return [strictest(decisions_over(charges, answer)) for answer in answers]


def peek_many(groups: Sequence[Sequence[Charge]]) -> list[Decision | None]:
    """Tell of each group of limits, in one round trip, what it would say of its costs now; None of one without limits.

    Nothing is charged or counted.
    """
    commands = [command_over(charges, "peek", "?") for charges in groups if charges]
    try:
        answers = iter(limits().ask(commands) if commands else [])
    except StoreUnavailable:
        return [strictest(decisions_without(charges, "?", take=False)) if charges else None for charges in groups]
    return [strictest(readings_over(charges, next(answers))) if charges else None for charges in groups]


def release_all(charges: Sequence[Charge], holder: str) -> None:
    """Give back the slots among these charges; while Redis is away they come back with the end of their leases."""
    Slot(charges, holder).give_back()
