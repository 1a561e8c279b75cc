"""Durations and moments as people write them, and identifiers that carry time."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.clock import now, parse_duration, parse_moment, uuid7


@pytest.mark.parametrize(("text", "seconds"), [
    ("90s", 90), ("5m", 300), ("1h30m", 5400), ("2d", 172_800), ("1w", 604_800), ("250ms", 0.25), ("1.5h", 5400), ("90", 90),
    ("0", 0), ("0.5", 0.5), (" 10s ", 10), ("1H", 3600), ("1d2h3m4s", 93_784),
])  # fmt: skip
def test_duration_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", " ", "s", "10 s", "-5s", "1x", "tomorrow", "10s5", "1e3", "1,5s", "9" * 30, "9" * 30 + "w", "٣s"]
)
def test_what_is_no_duration_is_quoted_with_the_form(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; write it like 10s, 5m, 1h30m or 2d") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


@given(st.integers(0, 10_000), st.integers(0, 59), st.integers(0, 59))
def test_duration_adds_its_parts_up(hours: int, minutes: int, seconds: int) -> None:
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == timedelta(hours=hours, minutes=minutes, seconds=seconds)


def test_moment_without_a_zone_is_utc() -> None:
    assert parse_moment("2030-01-31T08:00:00") == datetime(2030, 1, 31, 8, tzinfo=UTC)
    assert parse_moment("2030-01-31T08:00:00+01:00") == datetime(2030, 1, 31, 7, tzinfo=UTC)
    assert parse_moment("2030-01-31T08:00:00Z") == datetime(2030, 1, 31, 8, tzinfo=UTC)
    assert parse_moment("2030-01-31") == datetime(2030, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "tomorrow", "08:00", "2030-13-01", "2030-01-31T25:00", 5, None])
def test_what_is_no_moment_is_quoted_with_the_form(text: object) -> None:
    with pytest.raises(ValueError, match="is not a time; write it like") as caught:
        parse_moment(text)  # type: ignore[arg-type]
    assert repr(text) in str(caught.value)


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC)))
def test_moment_written_in_iso_is_read_back(moment: datetime) -> None:
    assert parse_moment(moment.isoformat()) == moment


def test_now_knows_its_zone() -> None:
    assert now().tzinfo is UTC


def test_uuid7_is_one_by_version_and_variant() -> None:
    for _ in range(1000):
        made = UUID(uuid7())
        assert made.version == 7
        assert made.variant == "specified in RFC 4122"


def test_uuid7_carries_the_millisecond() -> None:
    before = time.time_ns() // 1_000_000
    carried = int(uuid7().replace("-", "")[:12], 16)
    assert before <= carried <= time.time_ns() // 1_000_000


def test_uuid7_sorts_by_time_as_text() -> None:
    made = []
    for _ in range(20):
        made.append(uuid7())
        time.sleep(0.0015)
    assert made == sorted(made)


def test_uuid7_is_unique_across_threads() -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.extend([uuid7() for _ in range(2000)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8000
