"""What one process admits by itself while Redis is away: its share of each limit, counted in memory."""

from __future__ import annotations

import os
import threading
import time
from functools import lru_cache

from cachetools import LRUCache

from worker.limits.rate import Algorithm, Rate

#: Counters a process keeps; the one used longest ago is forgotten first.
_KEPT = 10_000


class Share:
    """The counters of one process. Safe between threads.

    **Guarantee:** of a limit that is divided among `fleet` processes, each admits its part, and one at least; together they
    keep to the limit, as far as it is not smaller than the fleet. What Redis had admitted before it went away is not known here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._full_at: LRUCache[str, float] = LRUCache(_KEPT)
        self._slots: LRUCache[str, dict[str, tuple[float, int]]] = LRUCache(_KEPT)

    def ask(self, rate: Rate, counter: str, cost: int, holder: str, fleet: int, *, take: bool) -> tuple[bool, int, float]:
        """Return whether the share admits, what it has left, and the seconds until it admits; charge it if it does."""
        with self._lock:
            if rate.algorithm is Algorithm.SLOTS:
                return self._ask_slots(rate, counter, cost, holder, fleet, take)
            return self._ask_bucket(rate, counter, cost, fleet, take)

    def give_back(self, counter: str, holder: str) -> None:
        """Take a holder's slot back."""
        with self._lock:
            self._slots.get(counter, {}).pop(holder, None)

    def _ask_bucket(self, rate: Rate, counter: str, cost: int, fleet: int, take: bool) -> tuple[bool, int, float]:
        burst, interval_s = _bucket(rate, fleet)
        now = time.monotonic()
        full_at = max(now, self._full_at.get(counter, 0.0))
        room = burst - (full_at - now) / interval_s
        fits = room >= cost - 1e-6
        if fits and take:
            self._full_at[counter] = full_at + cost * interval_s
            room -= cost
        return fits, max(0, int(room + 1e-6)), max(1.0 if cost > burst else 0.0, (cost - room) * interval_s)

    def _ask_slots(self, rate: Rate, counter: str, cost: int, holder: str, fleet: int, take: bool) -> tuple[bool, int, float]:
        now = time.monotonic()
        held = {who: slot for who, slot in self._slots.get(counter, {}).items() if slot[0] > now and who != holder}
        left = max(1, rate.limit // fleet) - sum(slot[1] for slot in held.values())
        fits = cost <= left
        if fits and take:
            held[holder] = (now + rate.period_s, cost)
            left -= cost
            self._slots[counter] = held
        return fits, max(0, left), min((slot[0] - now for slot in held.values()), default=1.0)


def _bucket(rate: Rate, fleet: int) -> tuple[int, float]:
    """Return burst and seconds a unit of the bucket that keeps to a process's share in every period.

    A window counts whatever falls into it: half of its share may come at once, the other half spread over the period.
    """
    if rate.algorithm is Algorithm.BUCKET:
        return max(1, rate.burst // fleet), rate.period_s * fleet / rate.limit
    burst = max(1, rate.limit // fleet // 2)
    return burst, rate.period_s / max(rate.limit / fleet - burst, min(1.0, rate.limit / fleet))


@lru_cache(maxsize=1)
def share() -> Share:
    """Return this process's share."""
    return Share()


os.register_at_fork(after_in_child=share.cache_clear)
