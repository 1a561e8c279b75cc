"""Schedules tick when a brute walk over every minute says so, also where clocks are set forward and back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import crontab as celery_crontab
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.errors import InvalidSchedule
from worker.ledger.ticks import Crontab, interval_after, last_until, parse_zone

MINUTE = timedelta(minutes=1)

#: Zones with moments in UTC at which their clocks jump: an hour, half an hour, at midnight, a whole day, never.
JUMPS = {
    "Europe/Berlin": ["2025-03-30T01:00", "2025-10-26T01:00"],
    "America/New_York": ["2025-03-09T07:00", "2025-11-02T06:00"],
    "Australia/Lord_Howe": ["2025-04-05T15:00", "2025-10-04T15:30"],
    "America/Havana": ["2025-03-09T05:00", "2025-11-02T05:00"],
    "Pacific/Apia": ["2011-12-30T10:00"],
    "Asia/Kolkata": ["2025-03-30T01:00"],
    "UTC": ["2025-03-30T01:00"],
}


def walk(text: str, zone: str, start: datetime, minutes: int) -> Iterator[datetime]:
    """Yield the ticks after start, minute by minute, with the fields as Celery itself reads them."""
    fields, tz = celery_crontab.from_string(text), ZoneInfo(zone)
    hourly = len(fields.hour) == 24

    def named(wall: datetime) -> bool:
        return (
            wall.minute in fields.minute and wall.hour in fields.hour and wall.day in fields.day_of_month
            and wall.month in fields.month_of_year and wall.isoweekday() % 7 in fields.day_of_week
        )  # fmt: skip

    moment = start.replace(second=0, microsecond=0)
    before = moment.astimezone(tz)
    for _ in range(minutes):
        moment += MINUTE
        wall = moment.astimezone(tz)
        skipped, shown = before.replace(tzinfo=None) + MINUTE, wall.replace(tzinfo=None)
        passed_over = False
        while skipped < shown:
            passed_over = passed_over or named(skipped)
            skipped += MINUTE
        if (named(wall) and (hourly or not wall.fold)) or (passed_over and not hourly):
            yield moment
        before = wall


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def ticks(text: str, zone: str, start: datetime, until: datetime) -> list[datetime]:
    found, parsed, tz = [], Crontab.parse(text), ZoneInfo(zone)
    while (start := parsed.next_after(start, tz)) <= until:
        found.append(start)
    return found


def local(text: str, zone: str, day: str) -> list[str]:
    """Return the ticks of one local day as its clock shows them."""
    tz = ZoneInfo(zone)
    start = datetime.fromisoformat(day).replace(tzinfo=tz).astimezone(UTC) - MINUTE
    found = (tick.astimezone(tz) for tick in ticks(text, zone, start, start + timedelta(hours=26)))
    return [f"{tick:%H:%M%z}" for tick in found if f"{tick:%Y-%m-%d}" == day]


def part(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    ranges = st.tuples(number, number).map(lambda pair: f"{pair[0]}-{pair[1]}")
    bases = st.one_of(st.just("*"), ranges)
    steps = st.tuples(bases, st.integers(1, high)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    return st.lists(st.one_of(number.map(str), ranges, st.just("*"), steps), min_size=1, max_size=3).map(",".join)


days = st.sampled_from(["*", "*", "*", "*/2", "26-31,1-10", "30"])
weekdays = st.sampled_from(["*", "*", "*", "mon-fri", "sun", "sat-sun,3"])
crontabs = st.builds(
    lambda minute, hour, day, weekday: f"{minute} {hour} {day} * {weekday}",
    st.one_of(st.just("*/7"), st.just("30"), part(0, 59)), st.one_of(st.just("*"), st.just("2"), part(0, 23)), days, weekdays,
)  # fmt: skip
places = st.sampled_from([(zone, jump) for zone, jumps in JUMPS.items() for jump in jumps])


@settings(max_examples=300, deadline=None)
@given(crontabs, places, st.integers(-30 * 60 * 60, 8 * 60 * 60))
@example("30 2 * * *", ("Europe/Berlin", "2025-03-30T01:00"), -3600)
@example("45 1,2 * * *", ("Australia/Lord_Howe", "2025-04-05T15:00"), -900)
def test_next_tick_is_the_one_a_walk_over_every_minute_finds(text: str, place: tuple[str, str], offset_s: int) -> None:
    zone, jump = place
    start = at(jump) + timedelta(seconds=offset_s)
    span = 48 * 60
    expected = next(walk(text, zone, start, span), None)
    found = Crontab.parse(text).next_after(start, ZoneInfo(zone))
    if expected is None:
        assert found > start + span * MINUTE - MINUTE
    else:
        assert found == expected
        assert found.utcoffset() == timedelta(0)


@pytest.mark.parametrize("zone", JUMPS)
@pytest.mark.parametrize("text", ["*/15 * * * *", "*/20 0-5 * * *", "30 2 * * *", "0 0 * * *", "59 23,0,1 * * *", "* 1 * * sun"])
def test_every_tick_around_a_jump_is_found_once(zone: str, text: str) -> None:
    for jump in JUMPS[zone]:
        start = at(jump) - timedelta(days=1)
        found = ticks(text, zone, start, start + timedelta(days=2))
        assert found == list(walk(text, zone, start, 2 * 24 * 60))


def test_a_time_that_does_not_exist_ticks_once_at_the_end_of_the_gap() -> None:
    assert local("30 2 * * *", "Europe/Berlin", "2025-03-30") == ["03:00+0200"]
    assert local("*/10 2,3 * * *", "Europe/Berlin", "2025-03-30") == [f"03:{m:02}+0200" for m in range(0, 60, 10)]
    assert local("15 2 * * *", "Australia/Lord_Howe", "2025-10-05") == ["02:30+1100"]
    assert local("0 0 30 12 *", "Pacific/Apia", "2011-12-31") == ["00:00+1400"]


def test_a_time_shown_twice_ticks_the_first_time() -> None:
    assert local("30 2 * * *", "Europe/Berlin", "2025-10-26") == ["02:30+0200"]
    assert local("45 1 * * *", "Australia/Lord_Howe", "2025-04-06") == ["01:45+1100"]


def test_a_schedule_of_every_hour_goes_on_through_both_passes() -> None:
    assert len(local("*/10 * * * *", "Europe/Berlin", "2025-10-26")) == 25 * 6
    assert len(local("*/10 * * * *", "Europe/Berlin", "2025-03-30")) == 23 * 6
    found = ticks("*/10 * * * *", "America/New_York", at("2025-11-02T00:00"), at("2025-11-03T00:00"))
    assert {b - a for a, b in pairwise(found)} == {timedelta(minutes=10)}


def test_a_daily_schedule_ticks_once_every_day_of_a_year() -> None:
    for zone in JUMPS:
        found = ticks("30 2 * * *", zone, at("2025-01-01T00:00"), at("2026-01-01T00:00"))
        days = [tick.astimezone(ZoneInfo(zone)).date() for tick in found]
        assert len(set(days)) == len(days)
        assert len(days) in (365, 366)


@given(part(0, 59), part(0, 23), part(1, 31), part(1, 12), part(0, 6))
def test_fields_are_read_as_celery_reads_them(minute: str, hour: str, day: str, month: str, weekday: str) -> None:
    text = f"{minute} {hour} {day} {month} {weekday}"
    try:
        theirs = celery_crontab.from_string(text)
    except ValueError:
        with pytest.raises(InvalidSchedule, match="never happens"):
            Crontab.parse(text)
        return
    ours = Crontab.parse(text)
    read = [theirs.minute, theirs.hour, theirs.day_of_month, theirs.month_of_year, theirs.day_of_week]
    assert [ours.minutes, ours.hours, ours.days, ours.months, ours.weekdays] == [tuple(sorted(field)) for field in read]


def test_names_stand_for_months_and_days() -> None:
    parsed = Crontab.parse("*/5 8-18 * JAN,march-may Mon-fri")
    assert parsed.months == (1, 3, 4, 5)
    assert parsed.weekdays == (1, 2, 3, 4, 5)
    assert Crontab.parse("0 0 * * fri-mon").weekdays == (0, 1, 5, 6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bad cron", "2 fields, not five"),
        ("", "0 fields, not five"),
        ("61 * * * *", "'61' does not fit the minute: write 0-59"),
        ("* 24 * * *", "'24' does not fit the hour"),
        ("* * 0 * *", "'0' does not fit the day of month"),
        ("* * * 13 *", "'13' does not fit the month"),
        ("* * * * 7", "'7' does not fit the day of week: write 0-6 or sun-sat"),
        ("mon * * * *", "'mon' does not fit the minute"),
        ("* * * mon *", "'mon' does not fit the month"),
        ("*/0 * * * *", "'*/0' does not fit the minute"),
        ("5/10 * * * *", "'5/10' does not fit the minute"),
        ("1-5* * * * *", "'1-5*' does not fit the minute"),
        ("1,,2 * * * *", "'' does not fit the minute"),
        ("-5 * * * *", "'-5' does not fit the minute"),
        ("* * * * *\n* * * * *", "10 fields"),
        ("٣ * * * *", "does not fit the minute"),
        ("9" * 5000 + " * * * *", "does not fit the minute"),
        ("0 0 31 2 *", "never happens"),
        ("0 0 31 4,6,9,11 *", "never happens"),
    ],
)
def test_a_bad_crontab_gets_one_line_that_names_it(text: str, words: str) -> None:
    with pytest.raises(InvalidSchedule) as caught:
        Crontab.parse(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_rarest_date_is_found() -> None:
    found = Crontab.parse("0 0 29 2 mon").next_after(at("2072-03-01T00:00"), ZoneInfo("UTC"))
    assert found == at("2112-02-29T00:00")  # 2100 is no leap year


def test_a_schedule_past_the_end_of_the_calendar_is_refused() -> None:
    with pytest.raises(InvalidSchedule, match="calendar"):
        Crontab.parse("0 0 1 1 *").next_after(datetime(9999, 6, 1, tzinfo=UTC), ZoneInfo("UTC"))


@pytest.mark.parametrize("name", ["Mars/Base", "", "../etc/passwd", "America", "Europe/Berlin\0", "/etc/localtime", "x" * 300])
def test_an_unknown_zone_is_named(name: str) -> None:
    with pytest.raises(InvalidSchedule, match=r"timezone .* is not known"):
        parse_zone(name)


@given(st.sampled_from([0.1, 0.25, 1, 7.5, 60, 86_400]), st.integers(-10, 10_000_000_000))
def test_an_interval_does_not_drift(every_s: float, micros: int) -> None:
    anchor = at("2025-03-01T00:00")
    moment = anchor + timedelta(microseconds=micros)
    tick = interval_after(moment, anchor, every_s)
    every = timedelta(seconds=every_s)
    assert moment < tick <= max(moment, anchor) + every
    assert (tick - anchor) % every == timedelta(0)
    assert tick > anchor


@settings(max_examples=60, deadline=None)
@given(crontabs, places, st.integers(0, 40 * 60))
def test_the_last_missed_tick_is_found_by_halving(text: str, place: tuple[str, str], minutes: int) -> None:
    zone, jump = place
    start = at(jump) - timedelta(hours=20)
    until = start + minutes * MINUTE
    expected = list(walk(text, zone, start, minutes))
    if expected:
        found = last_until(lambda m: Crontab.parse(text).next_after(m, ZoneInfo(zone)), expected[0], until)
        assert found == expected[-1]


def test_years_of_missed_ticks_cost_few_steps() -> None:
    asked = []

    def after(moment: datetime) -> datetime:
        asked.append(moment)
        return Crontab.parse("* * * 1-6 *").next_after(moment, ZoneInfo("UTC"))

    assert last_until(after, at("2020-01-01T00:00"), at("2025-12-01T00:00")) == at("2025-06-30T23:59")
    assert len(asked) < 200
