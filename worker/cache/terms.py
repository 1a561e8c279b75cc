"""The terms on which a region keeps its values, checked once, and its counters."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from worker import telemetry
from worker.cache.names import seconds
from worker.errors import CacheConfigError

#: Back-off after the first failed load in a row, in milliseconds.
_BACK_OFF_MS = 250


class Counters:
    """The counters of one region, looked up once."""

    def __init__(self, region: str) -> None:
        self.hits = telemetry.CACHE_HITS.labels(region)
        self.misses = telemetry.CACHE_MISSES.labels(region)
        self.stale = telemetry.CACHE_STALE.labels(region)
        self.waits = telemetry.CACHE_WAITS.labels(region)
        self.early = telemetry.CACHE_EARLY.labels(region)
        self.bypasses = telemetry.CACHE_BYPASSES.labels(region)
        self.loads = telemetry.CACHE_LOADS.labels(region)
        self.refused = telemetry.CACHE_REFUSED.labels(region)
        self._region = region

    def failed(self, what: str) -> None:
        """Count a failure by what it was."""
        telemetry.CACHE_FAILURES.labels(self._region, what).inc()


@dataclass(frozen=True, slots=True)
class Terms:
    """How long values live and who refreshes them; durations in seconds, `lease_ms` in milliseconds."""

    ttl: float
    jitter: float
    negative_ttl: float
    stale_while_revalidate: float
    max_stale: float
    beta: float
    lease_ms: int
    max_wait_s: float
    max_back_off: float

    def back_off_ms(self, failures: int) -> int:
        """Return for how long nobody loads after so many failed loads in a row, in milliseconds: doubled with each."""
        return min(_BACK_OFF_MS << min(failures - 1, 16), round(1000 * self.max_back_off))

    def life_of(self, ttl: float, negative: bool) -> tuple[int, int]:
        """Return for how long a new entry is fresh and for how long it lives, in milliseconds.

        The lives of entries filled together differ by the jitter, so that they do not run out together.
        """
        if negative:
            fresh = max(1, round(self.negative_ttl * 1000))
            return fresh, fresh
        fresh = max(1, round(ttl * 1000 * (1 + self.jitter * random.uniform(-1, 1))))
        return fresh, fresh + round(1000 * max(self.stale_while_revalidate, self.max_stale))


def checked(
    *,
    ttl: Any,
    jitter: Any,
    negative_ttl: Any,
    stale_while_revalidate: Any,
    max_stale: Any,
    beta: Any,
    lease_s: Any,
    max_wait_s: Any,
    max_back_off: Any,
) -> Terms:
    """Return the terms. Raises `CacheConfigError` that names the argument, its value and what is accepted."""
    for name, value, most in (("jitter", jitter, 0.5), ("beta", beta, 100.0)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise CacheConfigError(f"{name}={value!r}: give a number from 0 to {most:g}")
    return Terms(
        ttl=seconds("ttl", ttl, above=True),
        jitter=jitter,
        negative_ttl=seconds("negative_ttl", negative_ttl),
        stale_while_revalidate=seconds("stale_while_revalidate", stale_while_revalidate),
        max_stale=seconds("max_stale", max_stale),
        beta=beta,
        lease_ms=round(1000 * seconds("lease_s", lease_s, least=0.1)),
        max_wait_s=seconds("max_wait_s", max_wait_s, above=True),
        max_back_off=seconds("max_back_off", max_back_off, above=True),
    )
