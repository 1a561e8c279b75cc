"""When schedules tick: crontab and interval arithmetic, pure, correct across changes of daylight saving time.

The rules, where a zone's clocks jump (they follow vixie cron, but for what is said of steps):

- A schedule of **every hour** (its hour field names all 24: `*`, `*/1`, `0-23`) goes by what the wall clock shows. A time that
  does not exist is passed over, one that is shown twice ticks twice: `*/10 * * * *` ticks each ten minutes of real time.
- A schedule of **some hours** ticks once for each time it names. Those that do not exist tick at the first moment after the gap,
  all of one gap together, once; one that is shown twice ticks the first time. So `0 2 * * *` ticks once each day of the year.
- An **interval** knows no wall clock: its ticks are `anchor + n * every`, for ever, without drift.

Day of month and day of week must both match, as in Celery; cron itself would take either.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from worker.errors import InvalidSchedule

#: Returns the first tick after a moment.
After = Callable[[datetime], datetime]

#: Years searched for a tick. The rarest date there is, a 29th of February on a given weekday, stays away for 40 at most.
_HORIZON_YEARS = 41
#: No zone sets its clocks back by more than this.
_FOLD = timedelta(hours=3)
#: The shortest interval: beats look once in this time at the most often.
MIN_EVERY_S = 0.1
#: The longest interval, a hundred years: its arithmetic stays within what a datetime holds.
MAX_EVERY_S = 100 * 365.25 * 86_400

_MONTHS = ("january", "february", "march", "april", "may", "june",
           "july", "august", "september", "october", "november", "december")  # fmt: skip
_DAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_PART = re.compile(r"(?:\*|(?P<low>[0-9]{1,4}|[a-z]+)(?:-(?P<high>[0-9]{1,4}|[a-z]+))?)(?:/(?P<step>[0-9]{1,4}))?")


@dataclass(frozen=True)
class _Field:
    """One of the five fields: what it may hold."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    def parse(self, text: str) -> tuple[int, ...]:
        """Return the sorted numbers a field's text stands for. Raises `InvalidSchedule`."""
        return tuple(sorted({number for part in text.split(",") for number in self._expand(part)}))

    def _expand(self, part: str) -> list[int]:
        match = _PART.fullmatch(part)
        if match is None or (match["step"] and match["low"] and not match["high"]):
            raise self._wrong(part)
        low, high, step = match["low"], match["high"], int(match["step"] or 1)
        if step == 0:
            raise self._wrong(part)
        first = self._number(low, part) if low else self.low
        last = self._number(high, part) if high else first if low else self.high
        if last < first:  # As in Celery, a range may go over the end: 22-2, fri-mon.
            return [*range(first, self.high + 1), *range(self.low, last + 1)][::step]
        return list(range(first, last + 1))[::step]

    def _number(self, text: str, part: str) -> int:
        if text.isdigit():
            number = int(text)
        else:
            number = next((n for n, name in enumerate(self.names, self.low) if text in (name, name[:3])), -1)
        if not self.low <= number <= self.high:
            raise self._wrong(part)
        return number

    def _wrong(self, part: str) -> InvalidSchedule:
        names = f" or {self.names[0][:3]}-{self.names[-1][:3]}" if self.names else ""
        accepted = f"{self.low}-{self.high}{names}, *, a list (1,2), a range (1-5) or a step (*/5, 1-5/2)"
        return InvalidSchedule(f"{part[:40]!r} does not fit the {self.name}: write {accepted}", field="crontab", value=part)


_FIELDS = (
    _Field("minute", 0, 59), _Field("hour", 0, 23), _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS), _Field("day of week", 0, 6, _DAYS),
)  # fmt: skip


@dataclass(frozen=True)
class Crontab:
    """Five parsed crontab fields.

        Crontab.parse("*/5 8-18 * * mon-fri").next_after(moment, ZoneInfo("Europe/Berlin"))

    **Guarantee:** pure arithmetic on the moment given; it asks no clock.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]

    @staticmethod
    @lru_cache(maxsize=1024)
    def parse(text: str) -> Crontab:
        """Parse `minute hour day-of-month month day-of-week`. Raises `InvalidSchedule` that quotes the wrong part."""
        parts = text.lower().split()
        if len(parts) != len(_FIELDS):
            raise InvalidSchedule(
                f"crontab {text[:80]!r} has {len(parts)} fields, not five: minute hour day-of-month month day-of-week, "
                "like 0 8 * * mon-fri", field="crontab", value=text,
            )  # fmt: skip
        try:
            parsed = Crontab(*(field.parse(part) for field, part in zip(_FIELDS, parts, strict=True)))
        except InvalidSchedule as exc:
            raise InvalidSchedule(f"crontab {text[:80]!r}: {exc}", **exc.__dict__) from None
        if not any(day <= _LONGEST[month - 1] for month in parsed.months for day in parsed.days):
            raise InvalidSchedule(f"crontab {text[:80]!r} never happens: no month of it has such a day", field="crontab")
        return parsed

    def next_after(self, moment: datetime, tz: ZoneInfo) -> datetime:
        """Return the first tick after the moment, in UTC. Raises `InvalidSchedule` when none comes before the calendar ends."""
        local = _local(moment, tz)
        folded = _offset(moment + _FOLD, tz) < _offset(moment - _FOLD, tz)
        best: datetime | None = None
        wall = local - _FOLD if folded else local
        while True:
            wall = self._next_wall(wall)
            moments = self._moments(wall, tz)
            if best is not None and moments and moments[0] >= best:
                return best
            best = min((m for m in moments if m > moment and (best is None or m < best)), default=best)
            # Near clocks that are set back, a later time on the wall may be an earlier moment: look on until none can be.
            if best is not None and not folded:
                return best

    def _next_wall(self, wall: datetime) -> datetime:
        """Return the first time on the wall after this one that the fields name."""
        try:
            start = wall.replace(second=0, microsecond=0) + timedelta(minutes=1)
            day = self._next_day(start.date())
            if day == start.date():
                at = bisect_left(self.hours, start.hour)
                if at < len(self.hours):
                    hour = self.hours[at]
                    minute = self._minute_from(start.minute if hour == start.hour else 0)
                    if minute is None and at + 1 < len(self.hours):
                        hour, minute = self.hours[at + 1], self.minutes[0]
                    if minute is not None:
                        return start.replace(hour=hour, minute=minute)
                day = self._next_day(day + timedelta(days=1))
        except OverflowError as exc:
            raise InvalidSchedule("the schedule has no further tick before the calendar ends") from exc
        return datetime(day.year, day.month, day.day, self.hours[0], self.minutes[0])

    def _minute_from(self, minute: int) -> int | None:
        at = bisect_left(self.minutes, minute)
        return self.minutes[at] if at < len(self.minutes) else None

    def _next_day(self, day: date) -> date:
        last = day.year + _HORIZON_YEARS
        while day.year <= last:
            if day.month not in self.months:
                day = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
            elif day.day in self.days and day.isoweekday() % 7 in self.weekdays:
                return day
            else:
                day += timedelta(days=1)
        raise InvalidSchedule(f"the schedule never happens in the {_HORIZON_YEARS} years after {last - _HORIZON_YEARS}")

    def _moments(self, wall: datetime, tz: ZoneInfo) -> tuple[datetime, ...]:
        """Return the moments at which a time on the wall ticks, in order; see the rules above."""
        first = wall.replace(tzinfo=tz).astimezone(UTC)
        second = wall.replace(tzinfo=tz, fold=1).astimezone(UTC)
        hourly = len(self.hours) == 24
        if first == second:
            return (first,)
        if first < second:
            return (first, second) if hourly else (first,)
        return () if hourly else (_end_of_gap(second, first, tz),)


def _local(moment: datetime, tz: ZoneInfo) -> datetime:
    return moment.astimezone(tz).replace(tzinfo=None, fold=0)


def _offset(moment: datetime, tz: ZoneInfo) -> timedelta:
    return moment.astimezone(tz).utcoffset() or timedelta()


def _end_of_gap(before: datetime, after: datetime, tz: ZoneInfo) -> datetime:
    """Return the moment between these two at which the clocks were set forward."""
    old = _offset(before, tz)
    while after - before > timedelta(seconds=1):
        middle = (before + (after - before) / 2).replace(microsecond=0)
        before, after = (middle, after) if _offset(middle, tz) == old else (before, middle)
    return after


def parse_zone(name: str) -> ZoneInfo:
    """Return the zone of this name. Raises `InvalidSchedule`."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError) as exc:
        text = f"timezone {name[:80]!r} is not known; write it like Europe/Berlin or UTC"
        raise InvalidSchedule(text, field="timezone", value=name) from exc


def interval_after(moment: datetime, anchor: datetime, every_s: float) -> datetime:
    """Return the first of `anchor + n * every_s`, n ≥ 1, after the moment, in UTC."""
    every = timedelta(seconds=every_s)
    passed = max((moment - anchor) // every, 0)
    return anchor.astimezone(UTC) + (passed + 1) * every


def last_until(after: After, first: datetime, until: datetime) -> datetime:
    """Return the last tick that is not past `until`, where `first` is one: by halving, so years of ticks cost nothing."""
    found, high = first, until
    while (following := after(found)) <= until:
        middle = found + (high - found) / 2
        later = after(middle)
        if later <= until:
            found = later
        else:
            found, high = following, middle
    return found
