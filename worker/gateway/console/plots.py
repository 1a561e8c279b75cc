"""Plots: where the bars of what statistics tell stand, for a template to draw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from math import log10
from typing import NamedTuple

from worker.ledger.statistics import Activity

#: The room of the plot of hours, in its own units, and of that the margins for words at the left and below.
WIDTH, HEIGHT, _LEFT, _BELOW, _ABOVE = 1000, 190, 44, 20, 8
#: The room of a bar in a line of a table.
LINE = 160
#: The shortest and the longest run time that the scale of a line tells apart, in seconds: a millisecond and an hour.
_SHORTEST_S, _LONGEST_S = 0.001, 3600.0


class Bar(NamedTuple):
    """What ended in one hour: two pieces of one bar, and what they stand for."""

    x: float
    width: float
    good_y: float
    good_height: float
    bad_y: float
    bad_height: float
    at: datetime
    good: int
    bad: int


class Hours(NamedTuple):
    """The plot of hours: bars, and lines of the scale with what each counts."""

    bars: list[Bar]
    lines: list[tuple[float, int]]
    words: list[tuple[float, str]]
    good: int
    bad: int


def hours(activity: Activity) -> Hours:
    """Return the plot of what ended in each hour, those in which nothing did as well."""
    counts: dict[datetime, list[int]] = defaultdict(lambda: [0, 0])
    for one in activity.by_hour:
        counts[one.hour][0] += one.ended - one.failed
        counts[one.hour][1] += one.failed
    last = activity.at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    moments = [last - timedelta(hours=back) for back in reversed(range(activity.hours))]
    top = _round_up(max((sum(counts[at]) for at in moments), default=0))
    step = (WIDTH - _LEFT) / max(1, len(moments))
    floor = HEIGHT - _BELOW
    unit = (floor - _ABOVE) / top
    bars = []
    for place, at in enumerate(moments):
        good, bad = counts[at]
        good_height, bad_height = _seen(good * unit), _seen(bad * unit)
        good_y = floor - good_height
        bars.append(Bar(round(_LEFT + place * step + 2, 1), round(step - 4, 1), round(good_y, 1), round(good_height, 1),
                        round(good_y - bad_height, 1), round(bad_height, 1), at, good, bad))  # fmt: skip
    lines = [(round(floor - count * unit, 1), count) for count in sorted({0, top // 2, top})]
    words = [(round(bar.x + bar.width / 2, 1), f"{bar.at:%H}") for bar in bars if bar.at.hour % 3 == 0]
    return Hours(bars, lines, words, sum(bar.good for bar in bars), sum(bar.bad for bar in bars))


def _seen(height: float) -> float:
    """Return a height that can be seen, if there is anything to see."""
    return max(1.5, height) if height else 0.0


def _round_up(most: int) -> int:
    """Return the top of a scale that has room for this: 2, 4, 10, 20, 40, 100 and so on."""
    top = 2
    while top < most:
        top = top * 5 // 2 if str(top).startswith("4") else top * 2
    return top


def run_time(value_s: float | None) -> float:
    """Return how long the bar of a run time is: tenfold times are the same step apart."""
    if value_s is None:
        return 0.0
    share = log10(min(max(value_s, _SHORTEST_S), _LONGEST_S) / _SHORTEST_S) / log10(_LONGEST_S / _SHORTEST_S)
    return round(max(2.0, share * LINE), 1)


def shares(values: Iterable[float | None]) -> list[float]:
    """Return how long the bars of values are beside each other, the longest as long as there is room."""
    found = [value or 0.0 for value in values]
    most = max(found, default=0.0)
    return [round(max(2.0, value / most * LINE), 1) if value else 0.0 for value in found]
