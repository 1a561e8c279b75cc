"""Rates as text: what is understood, what it means, and one clear error for everything else."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import CostTooHigh, InvalidLimit
from worker.limits import Algorithm, Limiter, Rate, parse_rate
from worker.limits.limit import short
from worker.limits.share import _bucket

SECOND = 1_000_000


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100/minute", Rate(Algorithm.SLIDING, 100, 60 * SECOND)),
        ("100 per minute", Rate(Algorithm.SLIDING, 100, 60 * SECOND)),
        ("10/second sliding", Rate(Algorithm.SLIDING, 10, SECOND)),
        ("1_000/hour fixed", Rate(Algorithm.FIXED, 1000, 3600 * SECOND)),
        ("100/minute burst 20", Rate(Algorithm.BUCKET, 100, 60 * SECOND, 20)),
        ("  5 / 30 SECONDS ", Rate(Algorithm.SLIDING, 5, 30 * SECOND)),
        ("7/d", Rate(Algorithm.SLIDING, 7, 86_400 * SECOND)),
        ("5 concurrent", Rate(Algorithm.SLOTS, 5, 30 * SECOND)),
        ("5 concurrent lease 2m", Rate(Algorithm.SLOTS, 5, 120 * SECOND)),
    ],
)
def test_rate_is_understood(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text",
    ["", "100", "100/", "/minute", "ten/minute", "100/fortnight", "0/minute", "-1/minute", "1.5/minute", "100/0 seconds",
     "100/minute burst", "100/minute burst 0", "100/minute fixed burst 3", "0 concurrent", "5 concurrent lease 0s", "1/400 days",
     "5 concurrent lease soon", "9999999999/minute", "2000000/second burst 5", "___/minute", "1__0/minute", "_1/minute",
     "1/day burst 1000000000", "1/" + "9" * 5000 + " seconds", "9" * 5000 + "/second", "5 concurrent lease " + "9" * 400 + "d",
     None, 100],
)  # fmt: skip
def test_what_is_no_rate_gets_one_error_that_quotes_it(text: Any) -> None:
    with pytest.raises(InvalidLimit, match=r"^rate: ") as found:
        parse_rate(text)
    assert repr(text) in str(found.value)
    assert "\n" not in str(found.value)


rates = st.one_of(
    st.builds("{}/{} seconds {}".format, st.integers(1, 10**9), st.integers(1, 10**6), st.sampled_from(["fixed", "sliding"])),
    st.builds("{}/{} seconds burst {}".format, st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 300)),
    st.builds("{}/second burst {}".format, st.integers(10**5, 10**6), st.integers(1, 10**9)),
    st.builds(lambda n, s: f"{n} concurrent lease {s}s", st.integers(1, 10**9), st.integers(1, 86_400)),
)


@given(rates)
def test_rate_as_it_is_written_back_means_the_same(text: str) -> None:
    rate = parse_rate(text)
    assert parse_rate(str(rate)) == rate


@given(st.text(max_size=40))
def test_any_text_is_a_rate_or_one_clear_error(text: str) -> None:
    try:
        rate = parse_rate(text)
    except InvalidLimit as exc:
        told = str(exc)
        assert repr(text) in told
    else:
        assert parse_rate(str(rate)) == rate


@pytest.mark.parametrize("cost", [0, -1, 1.0, True, "1", None])
def test_cost_that_is_no_whole_number_above_zero_is_refused(cost: Any) -> None:
    with pytest.raises(InvalidLimit, match=re.escape(f"cost={cost!r}")):
        parse_rate("5/minute").check_cost(cost)


def test_cost_above_the_burst_is_never_admissible_and_says_so() -> None:
    with pytest.raises(CostTooHigh, match="never admits more than 20") as found:
        parse_rate("100/minute burst 20").check_cost(21)
    assert (found.value.cost, found.value.most) == (21, 20)
    parse_rate("100/minute burst 20").check_cost(20)


@pytest.mark.parametrize(("name", "says"), [("", "name"), ("a b", "name"), ("a:b", "name"), ("x" * 65, "name"), (None, "name")])
def test_limit_with_a_name_that_cannot_be_is_refused(name: Any, says: str) -> None:
    with pytest.raises(InvalidLimit, match=f"^{says}: "):
        Limiter("5/minute", name=name)


def test_unknown_outage_policy_is_refused() -> None:
    with pytest.raises(InvalidLimit, match="on_outage: 'shut' is none of closed, local, open"):
        Limiter("5/minute", name="x", on_outage="shut")  # type: ignore[arg-type]


def test_key_that_is_no_text_is_refused_and_a_long_one_stays_apart_from_others() -> None:
    limiter = Limiter("5/minute", name="x")
    with pytest.raises(InvalidLimit, match="key=7"):
        limiter.counter(7)  # type: ignore[arg-type]
    one, two = limiter.counter("k" * 5000 + "1"), limiter.counter("k" * 5000 + "2")
    assert one != two
    assert len(one) < 100


@pytest.mark.parametrize("key", ["\ud800", "a\0b", "\u4e2d" * 48, "caf\u00e9", "{}:s60", "a b\n"])
def test_key_of_any_signs_has_a_counter_that_redis_can_take_and_that_stays_small(key: str) -> None:
    counter = Limiter("5/minute", name="x").counter(key)
    assert len(counter.encode()) < 100
    assert counter != Limiter("5/minute", name="x").counter(key + "1")
    assert short(short(key)) == short(key), "what a line of jobs has kept of a key must find the same counter"


@given(st.integers(1, 1000), st.integers(1, 64))
def test_shares_of_a_fleet_keep_to_the_limit_in_every_period(limit: int, fleet: int) -> None:
    burst, interval_s = _bucket(parse_rate(f"{limit}/minute"), fleet)
    in_a_period = burst + (60 - 1e-9) // interval_s
    assert in_a_period <= max(1, limit / fleet) + 1e-6
