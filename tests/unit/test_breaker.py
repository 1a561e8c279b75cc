"""The breaker: who is refused, who tries, and whose error means that the server is away."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import redis

from worker.errors import StoreFull, StoreRefused, StoreUnavailable
from worker.store import breaker
from worker.store.breaker import BREAK_S, Breaker

GONE = redis.exceptions.TimeoutError("late")


class Clock:
    """Shows the time that it is set to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def pass_break(self) -> None:
        self.now += BREAK_S + 0.1


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(breaker, "time", SimpleNamespace(monotonic=found.monotonic))
    return found


def broken() -> Breaker:
    found = Breaker("cache")
    assert isinstance(found.passed(found.admit(), GONE), StoreUnavailable)
    return found


def test_everybody_passes_while_all_is_well() -> None:
    found = Breaker("cache")
    assert [found.admit() for _ in range(3)] == [False] * 3
    assert not found.away


def test_nobody_passes_for_a_while_after_a_failure() -> None:
    found = broken()
    assert found.away
    with pytest.raises(StoreUnavailable, match=r"cache.*a moment ago"):
        found.admit()


def test_one_caller_tries_and_the_others_stay_refused_until_it_was_answered(clock: Clock) -> None:
    found = broken()
    clock.pass_break()
    assert found.admit(), "it was not the one that tries"
    assert found.away
    with pytest.raises(StoreUnavailable):
        found.admit()
    assert found.passed(True, None) is None
    assert not found.away
    assert not found.admit()


@pytest.mark.parametrize("failure", [GONE, KeyError("its own")])
def test_try_that_brought_no_answer_leaves_it_broken(clock: Clock, failure: Exception) -> None:
    found = broken()
    clock.pass_break()
    found.passed(found.admit(), failure)
    clock.pass_break()
    assert found.admit(), "the next one tries"


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (redis.exceptions.ResponseError("WRONGTYPE"), StoreRefused),
        (redis.exceptions.OutOfMemoryError("OOM"), StoreFull),
        (KeyError("its own"), None),
    ],
)
def test_refusal_and_a_callers_own_error_are_no_outage(failure: Exception, error: type | None) -> None:
    found = Breaker("cache")
    assert type(found.passed(found.admit(), failure)) is (error or type(None))
    assert not found.away


@pytest.mark.parametrize(
    "failure", [redis.exceptions.ReadOnlyError("READONLY"), ConnectionResetError(), redis.exceptions.ConnectionError()]
)
def test_lost_way_and_lost_failover_are_an_outage(failure: Exception) -> None:
    found = Breaker("cache")
    assert type(found.passed(found.admit(), failure)) is StoreUnavailable
    assert found.away
