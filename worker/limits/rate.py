"""Rates as people write them: `100/minute`, `100/minute burst 20`, `1000/hour fixed`, `5 concurrent lease 2m`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from worker.clock import parse_duration
from worker.errors import CostTooHigh, InvalidLimit

_NAMES = {1: "s sec second seconds", 60: "m min minute minutes", 3600: "h hour hours", 86_400: "d day days"}
#: Microseconds of each unit, by every way to write it.
_UNITS = {
    name: seconds * 1_000_000
    for seconds, names in _NAMES.items()
    for name in names.split()
}
#: A whole number as Python writes it: no text that looks like one may be more than `int` reads.
NUMBER = r"[0-9](?:_?[0-9]){0,19}"
_TIMED = re.compile(rf"({NUMBER}) ?(?:/|per) ?([0-9]{{1,9}})? ?([a-z]+)(?: (fixed|sliding|burst ({NUMBER})))?")
_CONCURRENT = re.compile(rf"({NUMBER}) concurrent(?: lease ([0-9.a-z]{{1,20}}))?")

#: The largest limit: what the counters in Redis have room for.
MOST = 1_000_000_000
#: The longest period in days: a counter must not outlive what anybody remembers of it.
MOST_DAYS = 366
#: The longest an empty bucket may take to fill, in days: beyond that its moment has no room for microseconds.
MOST_DAYS_TO_FILL = 10 * MOST_DAYS
#: Seconds after which a slot is taken from a holder that does not renew it.
LEASE_S = 30.0

_FORM = "write it like 100/minute, 100/minute burst 20, 1000/hour fixed, 10/30 seconds, or 5 concurrent"


class Algorithm(StrEnum):
    """How a rate is counted."""

    #: A counter that starts anew each period: up to twice the limit across the edge between two of them.
    FIXED = "fixed"
    #: At most the limit in any period, wherever it begins.
    SLIDING = "sliding"
    #: A steady rate, and a burst beyond it: in any period at most the burst and the rate's part.
    BUCKET = "bucket"
    #: So many at the same time.
    SLOTS = "slots"


@dataclass(frozen=True, slots=True)
class Rate:
    """How much is admitted in which time. Made by `parse_rate`."""

    algorithm: Algorithm
    limit: int
    #: The period, or the lease of a slot, in microseconds.
    period_us: int
    #: Most that a bucket admits at once; 0 for the others.
    burst: int = 0

    @property
    def most(self) -> int:
        """The highest cost that is ever admitted."""
        return self.burst or self.limit

    @property
    def period_s(self) -> float:
        """The period, or the lease of a slot, in seconds."""
        return self.period_us / 1_000_000

    @property
    def way(self) -> str:
        """What of it a counter in Redis depends on: a changed limit goes on counting, a changed way of counting starts anew."""
        if self.algorithm in (Algorithm.FIXED, Algorithm.SLIDING):
            return f"{self.algorithm[0]}{self.period_us // 1_000_000}"
        return self.algorithm

    def check_cost(self, cost: int) -> None:
        """Raise `InvalidLimit` for a cost that is none, `CostTooHigh` for one that is never admitted."""
        if isinstance(cost, bool) or not isinstance(cost, int) or cost < 1:
            raise InvalidLimit(f"cost={cost!r}: give a whole number, at least 1", cost=cost)
        if cost > self.most:
            why = f"cost={cost}: {self} never admits more than {self.most} at once; split it or raise the limit"
            raise CostTooHigh(why, cost=cost, most=self.most)

    def __str__(self) -> str:
        if self.algorithm is Algorithm.SLOTS:
            return f"{self.limit} concurrent lease {self.period_s:g}s"
        seconds = self.period_us // 1_000_000
        named = (name for name in ("day", "hour", "minute", "second") if _UNITS[name] == self.period_us)
        unit = next(named, f"{seconds} seconds")
        return f"{self.limit}/{unit} {f'burst {self.burst}' if self.burst else self.algorithm}"


def parse_rate(text: str) -> Rate:
    """Read a rate. One that names no way of counting is sliding: at most so many in any period.

    Raises `InvalidLimit` that quotes the text and names the accepted form.

        >>> str(parse_rate("100 per minute burst 20"))
        '100/minute burst 20'
    """
    if not isinstance(text, str):
        raise InvalidLimit(f"rate: {text!r} is not a text; {_FORM}")
    said = " ".join(text.lower().split())
    if found := _CONCURRENT.fullmatch(said):
        return Rate(Algorithm.SLOTS, _count(text, found[1]), _lease(text, found[2]))
    if found := _TIMED.fullmatch(said):
        return _timed(text, *found.groups())
    raise InvalidLimit(f"rate: {text!r} cannot be understood; {_FORM}")


def _timed(text: str, limit: str, times: str | None, unit: str, how: str | None, burst: str | None) -> Rate:
    if unit not in _UNITS:
        raise InvalidLimit(f"rate: {text!r} has the unit {unit!r}; use second, minute, hour or day")
    period_us = _UNITS[unit] * int(times or 1)
    if not 0 < period_us <= MOST_DAYS * _UNITS["day"]:
        raise InvalidLimit(f"rate: the period of {text!r} must be at least a second and at most {MOST_DAYS} days")
    count = _count(text, limit)
    if burst is None:
        return Rate(Algorithm(how or "sliding"), count, period_us)
    if count > period_us:
        raise InvalidLimit(f"rate: {text!r} is more than one a microsecond, too much for a bucket; use fixed or sliding")
    most = _count(text, burst)
    if most * period_us > count * MOST_DAYS_TO_FILL * _UNITS["day"]:
        raise InvalidLimit(f"rate: the bucket of {text!r} would take more than {MOST_DAYS_TO_FILL:,} days to fill")
    return Rate(Algorithm.BUCKET, count, period_us, most)


def _count(text: str, digits: str) -> int:
    count = int(digits)
    if not 1 <= count <= MOST:
        raise InvalidLimit(f"rate: {text!r} holds {count}; a limit is at least 1 and at most {MOST:,}")
    return count


def _lease(text: str, lease: str | None) -> int:
    try:
        seconds = parse_duration(lease).total_seconds() if lease else LEASE_S
    except ValueError as exc:
        raise InvalidLimit(f"rate: the lease of {text!r}: {exc}") from exc
    if not 0.1 <= seconds <= 86_400:
        raise InvalidLimit(f"rate: the lease of {text!r} must be at least 0.1 seconds and at most a day")
    return round(seconds * 1000) * 1000
