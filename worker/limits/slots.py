"""Slots that are held: renewed by the process's keeper while their holder works, given back when it is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from worker.errors import StoreUnavailable
from worker.limits.decision import Decision
from worker.limits.limit import Charge
from worker.limits.share import share
from worker.store import Lease, Loss, counted_on, keeper, limits, script
from worker.telemetry import OUTAGES

_renew = script("limit_renew")


class Slot:
    """Slots of one or more limits in the hands of one holder, renewed inside a `with`, or from `keep` to `give_back`."""

    def __init__(self, charges: Sequence[Charge], holder: str, decision: Decision | None = None) -> None:
        """Take note of what the holder took a moment ago."""
        self.holder = holder
        #: What was decided when they were taken.
        self.decision = decision
        lent = [charge for charge in charges if charge.slot]
        lives = [charge.limit.rate.period_us // 1000 for charge in lent]
        #: Set when a lease ran out before its holder was done: others may have the slot.
        self.lost = Loss(time.monotonic() + counted_on(min(lives, default=0)))
        self._leases = [
            Lease(charge.limit.counter(charge.key), charge.member(holder), life_ms, limits(), self.lost, _renew)
            for charge, life_ms in zip(lent, lives, strict=True)
        ]

    def keep(self) -> None:
        """Have the slots renewed at a third of their lease."""
        for lease in self._leases:
            keeper().add(lease)

    def give_back(self) -> None:
        """Give the slots back; while Redis is away they come back with the end of their leases."""
        for lease in self._leases:
            keeper().remove(lease)
            share().give_back(lease.key, self.holder)
        try:
            if self._leases:
                limits().ask([("ZREM", lease.key, lease.token) for lease in self._leases])
        except StoreUnavailable:
            OUTAGES.labels("slots", "run out").inc()

    def __enter__(self) -> Self:
        self.keep()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.give_back()
