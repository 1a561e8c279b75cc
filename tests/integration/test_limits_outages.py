"""Redis down, hung, full, flushed: each limit does what its policy says, in time, and it is counted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from redis import Redis

from tests.harness import eventually
from worker.embedded import Stack
from worker.limits import AsyncLimiter, Limiter, try_acquire_all
from worker.limits.share import share
from worker.telemetry import LIMIT_OUTAGES


@pytest.fixture(autouse=True)
def _fresh(env: dict[str, str]) -> None:
    share.cache_clear()


@pytest.fixture(params=["down", "hung"])
def away(request: pytest.FixtureRequest, stack: Stack) -> Callable[[], None]:
    """Take the coordination Redis away, in either way."""
    return stack.redis.kill if request.param == "down" else stack.redis.freeze


def counted(limit: str, policy: str) -> float:
    return LIMIT_OUTAGES.labels(limit, policy)._value.get()


def test_closed_refuses_open_admits_and_both_say_why(away: Callable[[], None]) -> None:
    closed, opened = Limiter("5/minute", name="money"), Limiter("5/minute", name="cosmetic", on_outage="open")
    assert closed.try_acquire("a")
    assert opened.try_acquire("a")
    away()
    before = counted("money", "closed"), counted("cosmetic", "open")
    refusal, admission = closed.try_acquire("a"), opened.try_acquire("a")
    assert (refusal.allowed, refusal.policy, refusal.retry_after_s) == (False, "closed", 1.0)
    assert (admission.allowed, admission.policy) == (True, "open")
    assert "Redis did not answer" in refusal.explain()
    assert (counted("money", "closed"), counted("cosmetic", "open")) == (before[0] + 1, before[1] + 1)
    for _ in range(20):
        assert not closed.try_acquire("a")
        assert opened.try_acquire("a")


def test_local_admits_its_share_and_not_more(away: Callable[[], None], conf: Callable[..., None]) -> None:
    conf(limits_fleet_size=4)
    sliding = Limiter("40/minute", name="s", on_outage="local")
    bucket = Limiter("40/minute burst 20", name="b", on_outage="local")
    slots = Limiter("8 concurrent", name="c", on_outage="local")
    away()
    assert sum(sliding.try_acquire("a").allowed for _ in range(100)) == 5, "half a share at once, the other half over the minute"
    assert sum(bucket.try_acquire("a").allowed for _ in range(100)) == 5
    assert sum(sliding.try_acquire("b").allowed for _ in range(100)) == 5, "another key has a share of its own"
    assert sum(slots.try_acquire("a", holder=f"h{n}").allowed for n in range(100)) == 2
    slots.release("a", "h0")
    assert slots.try_acquire("a", holder="again")
    refusal = sliding.try_acquire("a")
    assert refusal.policy == "local"
    assert 0 < refusal.retry_after_s <= 12


def test_local_share_holds_in_a_window_of_its_own_clock(stack: Stack, conf: Callable[..., None]) -> None:
    conf(limits_fleet_size=2)
    limiter = Limiter("40/second", name="s", on_outage="local")
    stack.redis.kill()
    limiter.try_acquire("a")
    admitted: list[float] = []
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        before = time.monotonic()
        if limiter.try_acquire("a"):
            admitted.append(before)
        time.sleep(0.001)
    most = max(sum(1 for other in admitted if at <= other < at + 0.98) for at in admitted)
    assert most <= 21
    assert len(admitted) >= 30


def test_decision_comes_within_fifty_milliseconds_also_when_redis_hangs(stack: Stack) -> None:
    limiter = Limiter("1000/minute", name="quick", on_outage="open")
    limiter.try_acquire("a")
    stack.redis.freeze()
    waits = []
    for _ in range(4):
        started = time.monotonic()
        limiter.try_acquire("a")
        waits.append(time.monotonic() - started)
        time.sleep(1.05)  # the breaker lets one try again
    assert 0.03 <= min(waits) <= 0.05
    started = time.monotonic()
    limiter.try_acquire("a")
    limiter.try_acquire("a")
    assert time.monotonic() - started < 0.06, "the server that hangs was not spared"


def test_fifty_callers_of_a_hung_redis_wait_once_not_one_after_the_other(stack: Stack) -> None:
    limiter = Limiter("1000/minute", name="quick", on_outage="open")
    limiter.try_acquire("a")
    stack.redis.freeze()
    waits: list[float] = []

    def caller() -> None:
        started = time.monotonic()
        assert limiter.try_acquire("a").policy == "open"
        waits.append(time.monotonic() - started)

    threads = [threading.Thread(target=caller) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(waits) == 50
    assert max(waits) < 0.5, "callers queued up behind each other's timeouts"


def test_redis_that_returns_decides_again(away: Callable[[], None], stack: Stack) -> None:
    limiter = Limiter("5/minute", name="money")
    limiter.acquire("a")
    away()
    assert not limiter.try_acquire("a")
    stack.redis.thaw()
    stack.redis.start()
    decision = eventually(lambda: limiter.try_acquire("a"), 10)
    assert decision.policy == ""


def test_each_limit_of_several_decides_by_its_own_policy(stack: Stack) -> None:
    opened, closed = Limiter("5/minute", name="o", on_outage="open"), Limiter("5/minute", name="c")
    local = Limiter("16/minute burst 16", name="l", on_outage="local")
    stack.redis.kill()
    assert try_acquire_all([opened.on(), local.on()])
    assert try_acquire_all([local.on(), closed.on(), opened.on()]).limit == "c:"
    assert local.try_acquire()
    assert not local.try_acquire(), "the share was two, and it is gone"


def test_refusal_of_one_leaves_the_shares_of_the_others(stack: Stack) -> None:
    closed, local = Limiter("5/minute", name="c"), Limiter("8/minute burst 8", name="l", on_outage="local")
    stack.redis.kill()
    for _ in range(5):
        assert not try_acquire_all([local.on(), closed.on()])
    assert local.try_acquire(), "a refusal charged it"


def test_flushed_redis_begins_anew_and_the_script_is_taught_again(redis: Redis) -> None:
    limiter = Limiter("2/minute", name="test")
    assert limiter.try_acquire(cost=2)
    redis.flushall()
    redis.script_flush()
    assert limiter.try_acquire().remaining == 1


def test_full_redis_is_an_outage_to_a_limit(redis: Redis) -> None:
    closed = Limiter("5/minute", name="money")
    redis.config_set("maxmemory", "1")
    try:
        assert closed.try_acquire("a").policy == "closed"
    finally:
        redis.config_set("maxmemory", "0")


def test_slot_that_cannot_be_given_back_comes_back_with_its_lease(stack: Stack) -> None:
    limiter = Limiter("1 concurrent lease 1s", name="test")
    with limiter.hold("a") as slot:
        stack.redis.freeze()
        assert slot.lost.wait(5), "a holder cut off for longer than its lease was not told"
    stack.redis.thaw()
    assert eventually(lambda: limiter.try_acquire("a", holder="next"), 5)


def test_asyncio_front_follows_the_same_policies(stack: Stack) -> None:
    stack.redis.kill()

    async def use() -> None:
        assert not await AsyncLimiter("5/minute", name="money").try_acquire("a")
        assert (await AsyncLimiter("5/minute", name="cosmetic", on_outage="open").try_acquire("a")).policy == "open"

    asyncio.run(use())
