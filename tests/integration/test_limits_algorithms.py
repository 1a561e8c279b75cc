"""Each algorithm by itself: what it admits, what it says, what it leaves in Redis."""

from __future__ import annotations

import asyncio
import statistics
import time
from uuid import uuid4

import pytest
from redis import Redis

from tests.harness import eventually
from worker.errors import CostTooHigh, InvalidLimit, LimitExceeded
from worker.limits import AsyncLimiter, Limiter, aio, ask_all, release_all, try_acquire_all
from worker.store import keys

pytestmark = pytest.mark.usefixtures("patient")

WAYS = ("5/minute", "5/minute fixed", "5/minute burst 5")


@pytest.fixture
def patient(conf) -> None:  # type: ignore[no-untyped-def]
    """A machine under load may take longer for an answer than a limit waits."""
    conf(limits_timeout_ms=5000)


@pytest.mark.parametrize("rate", WAYS)
def test_limit_admits_so_many_and_tells_what_is_left(rate: str) -> None:
    limiter = Limiter(rate, name="test")
    assert [limiter.try_acquire("a").remaining for _ in range(5)] == [4, 3, 2, 1, 0]
    refusal = limiter.try_acquire("a")
    assert not refusal
    assert refusal.limit == "test:a"
    assert 0 < refusal.retry_after_s <= 61
    assert limiter.try_acquire("b"), "another key has a count of its own"


@pytest.mark.parametrize("rate", WAYS)
def test_denial_consumes_nothing(rate: str, redis: Redis) -> None:
    limiter = Limiter(rate, name="test")
    limiter.acquire("a", cost=3)
    before = redis.get(limiter.counter("a"))
    for _ in range(50):
        assert not limiter.try_acquire("a", cost=3)
    assert redis.get(limiter.counter("a")) == before
    assert limiter.try_acquire("a", cost=2)


@pytest.mark.parametrize("rate", WAYS)
def test_cost_counts_as_often_as_it_says(rate: str) -> None:
    limiter = Limiter(rate, name="test")
    assert limiter.try_acquire("a", cost=4).remaining == 1
    assert not limiter.try_acquire("a", cost=2)
    assert limiter.try_acquire("a", cost=1)
    with pytest.raises(CostTooHigh):
        limiter.try_acquire("a", cost=6)


@pytest.mark.parametrize("rate", [*WAYS, "5 concurrent"])
def test_peek_charges_nothing_and_reset_frees_all(rate: str, redis: Redis) -> None:
    limiter = Limiter(rate, name="test")
    assert limiter.peek("a", cost=5)
    assert redis.dbsize() == 0
    assert limiter.try_acquire("a", cost=5, holder="me")
    assert not limiter.peek("a")
    limiter.reset("a")
    assert limiter.peek("a", cost=5)


@pytest.mark.parametrize("rate", ["3/second", "3/second fixed", "3/second burst 3", "3/2 seconds burst 2"])
def test_retry_after_is_the_moment_it_admits_and_not_before(rate: str) -> None:
    limiter = Limiter(rate, name="test")
    while limiter.try_acquire("a"):
        pass
    refusal = limiter.try_acquire("a")
    if refusal:  # its moment came between the two
        refusal = limiter.try_acquire("a")
    asked = time.monotonic()
    while not limiter.try_acquire("a"):
        assert time.monotonic() - asked < refusal.retry_after_s + 1, "it was promised earlier"
    assert time.monotonic() - asked > refusal.retry_after_s - 0.05, "it admitted before its time"


def test_bucket_admits_its_whole_burst_also_where_a_unit_is_no_whole_microsecond() -> None:
    limiter = Limiter("7/hour burst 700", name="test")
    assert sum(bool(limiter.try_acquire("a")) for _ in range(702)) == 700


def test_bucket_tells_to_the_microsecond_when_to_come_again() -> None:
    limiter = Limiter("1/minute burst 1", name="test")
    limiter.acquire("a")
    assert 59.5 < limiter.try_acquire("a").retry_after_s <= 60


def test_sliding_window_counts_large_limits_in_as_little_memory(redis: Redis) -> None:
    limiter = Limiter("1000000/second", name="host")
    for _ in range(150):
        limiter.try_acquire("api.example.com", cost=6007)
        time.sleep(0.01)
    assert redis.memory_usage(limiter.counter("api.example.com")) <= 200


@pytest.mark.parametrize("limit", [1, 100, 1000, 999_999_999])
@pytest.mark.parametrize("way", ["/minute", "/minute fixed", "/minute burst {0}"])
def test_counter_takes_two_hundred_bytes_whatever_the_cost(limit: int, way: str, redis: Redis) -> None:
    if "burst" in way:
        limit = min(limit, 60_000_000)
    limiter = Limiter(f"{limit}{way.format(limit)}", name="user")
    users = [str(uuid4()) for _ in range(21)]
    for user in users:
        limiter.acquire(user, cost=limit)
    sizes = [redis.memory_usage(limiter.counter(user)) for user in users]
    # An allocator that finds a larger piece free gives that: the median is what a counter takes.
    assert statistics.median(size for size in sizes if isinstance(size, int)) <= 200


def test_changed_limit_goes_on_counting_what_was_admitted() -> None:
    edits = (("100/minute", "1000/minute", 940), ("1000/minute", "100/minute", 40), ("100/minute fixed", "70/minute fixed", 10))
    for rate, changed, left in edits:
        before, after = Limiter(rate, name="test"), Limiter(changed, name="test")
        before.reset("a")
        before.acquire("a", cost=60)
        assert left - 10 <= after.peek("a").remaining <= left, (rate, changed)


def test_changed_unit_of_a_sliding_window_counts_rather_more_than_less() -> None:
    before = Limiter("100000/second", name="test")
    for _ in range(30):
        before.try_acquire("a", cost=1111)
        time.sleep(0.01)
    left = Limiter("1000000/second", name="test").peek("a").remaining
    assert left <= 1_000_000 - 100_000 * 0.3 + 30 * 4000
    assert Limiter("100/second", name="test").peek("a").remaining == 0


def test_every_key_has_a_time_to_live(redis: Redis) -> None:
    for rate in (*WAYS, "5 concurrent", "3/second burst 2", "7/day"):
        limiter = Limiter(rate, name="test")
        for cost in (1, 2, 1, 5):
            if cost <= limiter.rate.most:
                limiter.try_acquire(rate[:3], cost=cost, holder=f"h{cost}")
    found = list(redis.scan_iter())
    assert len(found) >= 5
    assert [key for key in found if redis.pttl(key) <= 0] == []


def test_every_key_is_of_a_declared_kind(redis: Redis) -> None:
    assert keys.limit("host:a", "s60") == "holdfast:limit:{host:a}:s60"
    Limiter("5 concurrent", name="test").try_acquire("a", holder="x")
    Limiter("5/minute", name="test").try_acquire("a")
    assert {key.decode() for key in redis.scan_iter()} == {"holdfast:limit:{test:a}:slots", "holdfast:limit:{test:a}:s60"}


@pytest.mark.parametrize("rate", ["5/minute", "5/minute burst 5"])
def test_counter_of_a_clock_that_ran_ahead_heals_within_a_period(rate: str, redis: Redis) -> None:
    """The counter is what a server would have written whose clock was a day ahead, before it was set right."""
    limiter = Limiter(rate, name="test")
    limiter.acquire("a", cost=5)
    counter, raw = limiter.counter("a"), redis.get(limiter.counter("a"))
    assert isinstance(raw, bytes)
    if "burst" in rate:
        ahead = f"{float(raw) + 86_400_000_000:.3f}".encode()
    else:
        ahead = (int.from_bytes(raw[:5], "little") + 86_400).to_bytes(5, "little") + raw[5:]
    redis.set(counter, ahead, px=86_400_000)
    refusal = limiter.try_acquire("a", cost=5)
    assert not refusal, "what was charged in the future was forgotten"
    assert refusal.retry_after_s <= 62
    if "burst" not in rate:
        assert redis.pttl(counter) <= 62_000, "it does not age until the clock has caught up"


def test_bucket_under_a_smaller_burst_owes_no_more_than_that(redis: Redis) -> None:
    Limiter("1/minute burst 100", name="test").acquire("a", cost=100)
    assert Limiter("1/minute burst 2", name="test").try_acquire("a").retry_after_s <= 60
    assert Limiter("1/minute burst 2", name="test").try_acquire("a", cost=2).retry_after_s <= 120


# ---- slots


def test_slots_are_lent_to_so_many_and_come_back() -> None:
    limiter = Limiter("2 concurrent", name="test")
    with limiter.hold("a") as slot:
        assert slot.decision
        with limiter.hold("a"):
            with pytest.raises(LimitExceeded) as found, limiter.hold("a"):
                pass
            assert found.value.limit == "test:a"
            assert 0 < found.value.retry_after <= 30
        assert limiter.peek("a").remaining == 1
    assert limiter.peek("a").remaining == 2


def test_slot_of_a_dead_holder_comes_back_with_its_lease() -> None:
    limiter = Limiter("2 concurrent lease 1.5s", name="test")
    limiter.acquire("a", holder="dead")
    with limiter.hold("a") as slot:  # a living one beside it keeps the counter alive
        refusal = limiter.try_acquire("a", holder="next")
        assert not refusal
        assert refusal.retry_after_s <= 1.5
        assert eventually(lambda: limiter.try_acquire("a", holder="next"), 5)
        assert not slot.lost.is_set()


def test_held_slot_is_renewed_beyond_its_lease_and_tells_when_it_is_lost() -> None:
    limiter = Limiter("1 concurrent lease 1.5s", name="test")
    with limiter.hold("a") as slot:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert not limiter.try_acquire("a", holder="other"), "a renewed slot was lent again"
            time.sleep(0.02)
        assert not slot.lost.is_set()
        limiter.reset("a")
        assert slot.lost.wait(1)


def test_holder_that_asks_again_holds_one_slot() -> None:
    limiter = Limiter("2 concurrent", name="test")
    for _ in range(3):
        assert limiter.try_acquire("a", holder="me").remaining == 1
    limiter.release("a", "me")
    assert limiter.peek("a").remaining == 2


def test_slots_with_a_cost_are_counted_and_released_with_it() -> None:
    limiter = Limiter("5 concurrent", name="test")
    assert limiter.try_acquire("a", cost=3, holder="big").remaining == 2
    assert not limiter.try_acquire("a", cost=3, holder="other")
    limiter.release("a", "big", cost=3)
    assert limiter.try_acquire("a", cost=5, holder="other")


def test_concurrency_limit_without_a_holder_is_refused() -> None:
    with pytest.raises(InvalidLimit, match="use `hold`"):
        Limiter("2 concurrent", name="test").try_acquire("a")


# ---- several


def test_several_limits_are_charged_all_or_none(redis: Redis) -> None:
    host, user = Limiter("10/minute", name="host"), Limiter("2/minute burst 2", name="user")
    slots = Limiter("5 concurrent", name="slots")
    charges = [host.on("a"), user.on("u"), slots.on("s")]
    assert try_acquire_all(charges, holder="one")
    assert try_acquire_all(charges, holder="two")
    before = {key: redis.dump(key) for key in redis.scan_iter()}
    refusal = try_acquire_all(charges, holder="three")
    assert not refusal
    assert refusal.limit == "user:u"
    assert {key: redis.dump(key) for key in redis.scan_iter()} == before, "a refusal of one charged another"
    assert [bool(decision) for decision in ask_all(charges, holder="three", take=False)] == [True, False, True]
    release_all(charges, "one")
    assert slots.peek("s").remaining == 4


def test_strictest_refusal_speaks_for_several() -> None:
    quick, slow = Limiter("1/second", name="quick"), Limiter("1/hour", name="slow")
    charges = [slow.on(), quick.on()]
    try_acquire_all(charges)
    refusal = try_acquire_all(charges)
    assert refusal.limit == "slow:"
    assert refusal.retry_after_s > 3000
    assert "slow: (1/hour sliding) refuses; 0 left" in refusal.explain()


def test_counter_named_twice_and_no_limit_at_all_are_refused() -> None:
    limiter = Limiter("5/minute", name="test")
    with pytest.raises(InvalidLimit, match="named twice"):
        try_acquire_all([limiter.on("a"), limiter.on("a", 2)])
    with pytest.raises(InvalidLimit, match="at least one"):
        try_acquire_all([])


def test_asyncio_front_counts_on_the_same_keys() -> None:
    async def use() -> None:
        limiter = AsyncLimiter("5/minute", name="test")
        found = await asyncio.gather(*(limiter.try_acquire("a") for _ in range(20)))
        assert sum(map(bool, found)) == 5
        assert not await limiter.peek("a")
        with pytest.raises(LimitExceeded):
            await limiter.acquire("a")
        assert not await aio.try_acquire_all([limiter.on("a"), AsyncLimiter("1 concurrent", name="s").on("a")], holder="me")

    asyncio.run(use())
    limiter = Limiter("5/minute", name="test")
    assert not limiter.try_acquire("a")
    limiter.reset("a")
    assert limiter.try_acquire("a")
