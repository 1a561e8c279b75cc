"""Redis down, hung, flushed, failed over to a stale copy: nobody takes a lock, its holder is told, locks of Postgres go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests.harness import eventually
from tests.integration.conftest import promoted_on
from worker.embedded import RedisServer, Stack
from worker.errors import LockLost, StoreUnavailable
from worker.locks import AdvisoryLock, Held, Lock, Semaphore
from worker.locks import held as held_locks
from worker.store import keys
from worker.telemetry import OUTAGES

Conn = psycopg.Connection[Any]


@pytest.fixture(autouse=True)
def _fresh(env: dict[str, str]) -> Iterator[None]:
    yield
    held_locks._thread.holds.clear()


@pytest.fixture(params=["down", "hung"])
def away(request: pytest.FixtureRequest, stack: Stack) -> Callable[[], None]:
    """Take the coordination Redis away, in either way."""
    return stack.redis.kill if request.param == "down" else stack.redis.freeze


def back(stack: Stack) -> None:
    stack.redis.thaw()
    stack.redis.start()


def counted(policy: str) -> float:
    return OUTAGES.labels("lock", policy)._value.get()


def test_nobody_takes_a_lock_without_redis_and_who_waits_gets_it_when_it_is_back(away: Callable[[], None], stack: Stack) -> None:
    Lock("warm", 30).acquire().release()
    away()
    started = time.monotonic()
    for take in (Lock("a", 30).try_acquire, Lock("a", 30).acquire, Semaphore("s", 2, 30).try_acquire):
        with pytest.raises(StoreUnavailable):
            take()
    with pytest.raises(StoreUnavailable):
        Lock("a", 30).acquire(1.5)
    assert 1.5 <= time.monotonic() - started < 8
    found: list[Held] = []
    waiting = threading.Thread(target=lambda: found.append(Lock("a", 30).acquire(30)))
    waiting.start()
    back(stack)
    waiting.join(30)
    assert found
    assert found[0].release()


def test_holder_is_told_when_its_lease_is_over_by_its_own_clock(away: Callable[[], None], stack: Stack) -> None:
    held = Lock("a", 1.0).acquire()
    away()
    started = time.monotonic()
    assert held.lost.wait(10)
    assert time.monotonic() - started <= 1.1, "it was told after its lease was over"
    with pytest.raises(LockLost, match="'a'"):
        held.check()


def test_outage_shorter_than_the_lease_is_not_noticed(stack: Stack) -> None:
    with Lock("a", 6.0).acquire() as held:
        stack.redis.freeze()
        time.sleep(2.5)
        back(stack)
        time.sleep(3.0)
        assert not held.lost.is_set()


def test_lock_that_cannot_be_given_up_is_given_up_when_redis_is_back_and_that_is_counted(stack: Stack) -> None:
    before = counted("given up late")
    with Lock("a", 60).acquire():
        stack.redis.freeze()
    assert counted("given up late") == before + 1
    time.sleep(0.5)
    back(stack)
    assert eventually(Lock("a", 60).try_acquire, 10)


def test_locks_of_postgres_know_nothing_of_it(away: Callable[[], None], db: Conn) -> None:
    away()
    started = time.monotonic()
    with AdvisoryLock("a").hold() as own, db.transaction():
        assert own.connection()
        assert AdvisoryLock("a").try_acquire(db) is False
        assert AdvisoryLock("b").try_acquire(db) is True
    assert time.monotonic() - started < 1


#: A lease so long that a waiter relies on being told for the longest there is, five seconds.
PATIENT_S = 60.0


@pytest.mark.parametrize(("harm", "within_s"), [("subscription", 4), ("queue", 20)])
def test_waiter_gets_its_turn_though_its_subscription_was_cut_or_the_queue_was_lost(
    redis: Redis, harm: str, within_s: float
) -> None:
    gate = Lock("a", PATIENT_S).acquire()
    found: list[Held] = []
    waiting = threading.Thread(target=lambda: found.append(Lock("a", PATIENT_S).acquire(30)))
    waiting.start()
    eventually(lambda: redis.llen(keys.waiters(keys.lock("a"))) == 1, 10)
    redis.client_kill_filter(_type="pubsub") if harm == "subscription" else redis.flushall()
    gate.release()
    waiting.join(within_s)
    assert found, "it was not told, nor did it ask when it could hear again"
    assert found[0].release()


# ---- a Redis that forgets


def test_flush_ends_the_lock_tells_its_holder_and_the_fence_still_grows(redis: Redis) -> None:
    first = Lock("a", 0.9).acquire()
    redis.flushall()
    redis.script_flush()
    second = take_elsewhere(Lock("a", 30))
    assert second.fence > first.fence
    assert first.lost.wait(5)
    assert first.release() is False
    assert redis.get(keys.lock("a")) == second.token.encode()


def take_elsewhere(lock: Lock) -> Held:
    """Take a lock in a thread of its own, as somebody else would."""
    found: list[Held] = []
    thread = threading.Thread(target=lambda: found.append(lock.acquire(10)))
    thread.start()
    thread.join(20)
    return found[0]


def test_failover_to_a_stale_copy_lets_two_hold_it_and_the_fence_tells_them_apart(
    stack: Stack, replica: RedisServer, redis: Redis, db: Conn
) -> None:
    db.execute("CREATE TABLE ledger_of_one (value int, fence int8)")
    db.execute("INSERT INTO ledger_of_one VALUES (0, 0)")
    old = Lock("a", 2.0, renew=False).acquire()
    assert redis.wait(1, 5000) == 1
    fail_over = promoted_on(stack.redis.port, replica)  # from here on the copy hears nothing more
    assert old.release()
    current = take_elsewhere(Lock("a", 2.0))
    assert begin(db, current.fence)
    stack.redis.kill()
    fail_over()
    with Redis.from_url(stack.redis.url) as copy:
        assert copy.get(keys.lock("a")) == old.token.encode(), "the copy should know the old holder only"
    assert current.lost.wait(10), "the holder that the copy does not know was not told"
    usurper = eventually(lambda: take_elsewhere(Lock("a", 20.0)), 20)
    assert usurper.fence > current.fence > old.fence
    assert begin(db, usurper.fence)
    assert not write(db, current.fence), "a stale write was accepted"
    assert write(db, usurper.fence)
    assert usurper.release()
    db.execute("DROP TABLE ledger_of_one")


def begin(db: Conn, fence: int) -> bool:
    return db.execute("UPDATE ledger_of_one SET fence = %s WHERE fence < %s RETURNING 1", (fence, fence)).fetchone() is not None


def write(db: Conn, fence: int) -> bool:
    return db.execute("UPDATE ledger_of_one SET value = value + 1 WHERE fence = %s RETURNING 1", (fence,)).fetchone() is not None
