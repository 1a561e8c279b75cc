"""Locks and semaphores in Redis: who holds them, who waits in which order, what it costs, what ends them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis import Redis

from tests.harness import Program, eventually
from worker.embedded import RedisServer
from worker.errors import InvalidLock, LockBusy, LockLost, LockReentered, StoreUnavailable
from worker.locks import Held, Lock, Semaphore, break_lock, list_locks, picture_of, queued
from worker.locks import held as held_locks
from worker.locks.turns import turns
from worker.store import client, keys

#: A lease that no test outlives.
LONG_S = 30.0


@pytest.fixture(autouse=True)
def _fresh(env: dict[str, str]) -> Iterator[None]:
    yield
    held_locks._thread.holds.clear()


def in_thread(work: Callable[[], Any]) -> Any:
    """Do this in another thread, as another holder, and return what it returned."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as exc:
            found.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return found[0]


def other(name: str, ttl_s: float = LONG_S) -> Held | None:
    """Try to take a lock as another holder."""
    return in_thread(lambda: Lock(name, ttl_s).try_acquire())  # type: ignore[no-any-return]


def queue_of(redis: Redis, name: str) -> int:
    return redis.llen(keys.waiters(keys.lock(name)))  # type: ignore[no-any-return]


def waiters(redis: Redis, name: str, count: int, work: Callable[[int, Held], None], wait_s: float = 60) -> list[threading.Thread]:
    """Start threads that wait for a lock, each queued up before the next."""

    def wait(n: int) -> None:
        with Lock(name, LONG_S).acquire(wait_s) as held:
            work(n, held)

    already, threads = queue_of(redis, name), []
    for n in range(count):
        threads.append(threading.Thread(target=wait, args=(n,)))
        threads[-1].start()
        eventually(lambda n=n: queue_of(redis, name) == already + n + 1, 10)
    return threads


# ---- one holder


@pytest.fixture
def elsewhere(server: RedisServer) -> Iterator[None]:
    """Let this process listen on the server of the test, and on its own again afterwards."""
    turns.cache_clear()
    yield
    turns.cache_clear()


@pytest.mark.usefixtures("elsewhere")
def test_lock_is_held_by_one_at_a_time_and_its_fence_grows_on_every_server() -> None:
    fences = []
    for _ in range(3):
        with Lock("a", LONG_S).acquire() as held:
            assert other("a") is None
            fences.append(held.fence)
    assert fences == sorted(set(fences))
    waiting = threading.Thread(target=lambda: Lock("a", LONG_S).acquire(20).release())
    with Lock("a", LONG_S).acquire():
        waiting.start()
        eventually(lambda: picture_of("a").waiting, 10)
    waiting.join(10)
    assert not waiting.is_alive()
    with Semaphore("s", 2, LONG_S).acquire(), Semaphore("s", 2, LONG_S).acquire() as second:
        assert Semaphore("s", 2, LONG_S).try_acquire() is None
        second.extend(20)
    assert not picture_of("s").holders


def test_lock_is_refused_at_once_to_who_does_not_wait_and_after_its_time_to_who_does() -> None:
    with Lock("a", LONG_S).acquire():
        assert isinstance(in_thread(lambda: Lock("a", LONG_S).acquire()), LockBusy)
        started = time.monotonic()
        refused = in_thread(lambda: Lock("a", LONG_S).acquire(0.5))
        assert isinstance(refused, LockBusy)
        assert (refused.name, "0.5 s" in str(refused)) == ("a", True)
        assert 0.5 <= time.monotonic() - started < 5
        assert picture_of("a").waiting == [], "who gave up still stands in the queue"


def test_lock_is_not_released_by_another_holder_and_its_own_release_says_whether_it_was_held(redis: Redis) -> None:
    first = Lock("a", LONG_S).acquire()
    redis.delete(keys.lock("a"))
    second = other("a")
    assert second
    assert second.fence > first.fence
    assert first.release() is False
    assert other("a") is None, "a stale release freed the lock of another"
    assert second.release() is True
    assert second.release() is False


def test_thread_that_holds_a_lock_is_refused_it_at_once_and_may_have_it_again_afterwards() -> None:
    lock = Lock("a", LONG_S)
    with lock.acquire():
        for again in (lock.try_acquire, lambda: Lock("a", LONG_S).acquire(30)):
            with pytest.raises(LockReentered, match="'a' is held by this thread already"):
                again()
        with Lock("b", LONG_S).acquire(), Semaphore("a", 1, LONG_S).acquire():
            pass
    with lock.acquire(), pytest.raises(LockReentered):
        lock.acquire()
    held = lock.acquire()
    assert in_thread(held.release) is True, "a lock may be handed to another thread"
    lock.acquire().release()


def test_held_lock_is_renewed_and_one_that_is_not_to_be_runs_out() -> None:
    with Lock("kept", 1.5).acquire() as kept:
        brief = Lock("brief", 0.3, renew=False).acquire()
        assert brief.lost.wait(5)
        assert eventually(lambda: other("brief"), 5)
        time.sleep(2)
        assert other("kept") is None
        assert not kept.lost.is_set()
        assert not kept.lost.wait(0.01)
    with pytest.raises(LockLost, match="'brief' was lost"):
        brief.check()


def test_extended_lock_is_held_for_longer_and_a_lost_one_cannot_be_extended(redis: Redis) -> None:
    held = Lock("a", 1.5, renew=False).acquire()
    held.extend(LONG_S)
    time.sleep(1.7)
    held.check()
    assert other("a") is None
    redis.delete(keys.lock("a"))
    with pytest.raises(LockLost):
        held.extend(LONG_S)
    assert not redis.exists(keys.lock("a")), "extending brought a lost lock back"


# ---- loss


def test_loss_is_told_while_it_is_held_and_again_at_the_end(redis: Redis) -> None:
    with pytest.raises(LockLost) as lost, Lock("a", 0.3).acquire() as held:  # noqa: PT012 - it is told twice
        redis.delete(keys.lock("a"))
        assert held.lost.wait(5)
        with pytest.raises(LockLost):
            held.check()
    assert lost.value.fence == held.fence


def test_loss_does_not_hide_what_the_block_raised(redis: Redis) -> None:
    with pytest.raises(ZeroDivisionError), Lock("a", LONG_S).acquire():  # noqa: PT012
        redis.delete(keys.lock("a"))
        math.floor(1 / 0)


def test_holder_that_stood_still_for_longer_than_its_lease_knows_it_the_moment_it_goes_on(env: dict[str, str]) -> None:
    code = (
        "import time; from worker.locks import Lock\n"
        "held = Lock('a', 0.5).acquire(); print('held', flush=True); at = time.monotonic()\n"
        "while time.monotonic() - at < 0.4: at = max(at, time.monotonic() - 0.01); time.sleep(0.001)\n"
        "print('lost' if held.lost.is_set() else 'sure', flush=True)\n"
    )
    with Program("-c", code, name="holder", ready="held") as holder:
        holder.freeze()
        assert eventually(lambda: other("a"), 10)
        holder.thaw()
        assert holder.wait_for_log("lost|sure")[0] == "lost"


# ---- waiting


def test_two_hundred_waiters_are_served_in_the_order_they_came_without_polling(redis: Redis) -> None:
    order: list[tuple[int, int]] = []
    gate = Lock("a", LONG_S).acquire()
    began = time.monotonic()
    threads = waiters(redis, "a", 200, lambda n, held: order.append((n, held.fence)) or time.sleep(0.005))  # type: ignore[func-returns-value]
    spent = commands(redis)
    gate.release()
    for thread in threads:
        thread.join(60)
    spent = {name: calls - spent.get(name, 0) for name, calls in commands(redis).items()}
    assert [n for n, _ in order] == list(range(200))
    assert [fence for _, fence in order] == sorted({fence for _, fence in order})
    # What they sent to queue up was counted as one each by `waiters`; from then on each sends its release, and no more.
    assert spent["evalsha"] + 200 <= 6 * 200
    # On a machine so slow that they wait for longer than a waiter relies on being told, each may ask once in that time.
    may_ask = 200 * int((time.monotonic() - began) / queued._ASK_S)
    assert spent["evalsha"] <= 210 + may_ask, "somebody asked instead of waiting to be told"
    inside = sum(calls for name, calls in spent.items() if name not in ("evalsha", "info", "ping", "llen"))
    assert inside <= 8 * 200, "the scripts have become dear"
    assert queue_of(redis, "a") == 0


def test_waiter_of_the_same_process_is_told_by_who_gives_it_up_and_one_of_another_through_the_server(
    redis: Redis, env: dict[str, str]
) -> None:
    code = "from worker.locks import Lock; print('waits', flush=True); Lock('a', 30).acquire(60); print('held', flush=True)"
    order: list[int] = []
    gate = Lock("a", LONG_S).acquire()
    threads = waiters(redis, "a", 3, lambda n, held: order.append(n))
    with Program("-c", code, name="waiter", ready="waits") as waiter:
        eventually(lambda: queue_of(redis, "a") == 4, 10)
        before = commands(redis).get("publish", 0)
        gate.release()
        for thread in threads:
            thread.join(10)
        waiter.wait_for_log("held")
    assert order == [0, 1, 2]
    assert commands(redis)["publish"] - before == 1


def commands(redis: Redis) -> dict[str, int]:
    told: dict[str, Any] = redis.info("commandstats")  # type: ignore[assignment]
    return {name.removeprefix("cmdstat_"): stats["calls"] for name, stats in told.items()}


def test_waiter_that_died_is_passed_over_and_the_order_stays(redis: Redis, env: dict[str, str]) -> None:
    order: list[int] = []
    gate = Lock("a", LONG_S).acquire()
    first = waiters(redis, "a", 1, lambda n, held: order.append(n))
    code = "from worker.locks import Lock; print('waits', flush=True); Lock('a', 30).acquire(60)"
    with Program("-c", code, name="waiter", ready="waits") as waiter:
        eventually(lambda: queue_of(redis, "a") == 2, 10)
        last = waiters(redis, "a", 1, lambda n, held: order.append(10 + n))
        listening = len(redis.pubsub_channels("holdfast:turns:*"))
        waiter.kill()
    eventually(lambda: len(redis.pubsub_channels("holdfast:turns:*")) == listening - 1, 10)
    started = time.monotonic()
    gate.release()
    for thread in first + last:
        thread.join(20)
    assert order == [0, 10]
    assert time.monotonic() - started < 3, "the dead waiter was waited for"


def test_waiter_that_is_paused_costs_its_lease_and_no_more(redis: Redis, env: dict[str, str]) -> None:
    code = "from worker.locks import Lock; print('waits', flush=True); Lock('a', 1.0).acquire(60)"
    gate = Lock("a", LONG_S).acquire()
    with Program("-c", code, name="waiter", ready="waits") as waiter:
        eventually(lambda: queue_of(redis, "a") == 1, 10)
        waiter.freeze()
        served: list[int] = []
        last = waiters(redis, "a", 1, lambda n, held: served.append(n))
        gate.release()
        last[0].join(20)
        assert served == [0]


def test_lock_of_a_killed_holder_goes_to_the_first_waiter_after_its_lease(redis: Redis, env: dict[str, str]) -> None:
    code = "import time; from worker.locks import Lock; Lock('a', 1.0).acquire(); print('held', flush=True); time.sleep(60)"
    order: list[int] = []
    with Program("-c", code, name="holder", ready="held") as holder:
        threads = waiters(redis, "a", 3, lambda n, held: order.append(n))
        holder.kill()
        for thread in threads:
            thread.join(20)
    assert order == [0, 1, 2]


def test_turn_that_comes_as_the_waiter_gives_up_is_not_lost(redis: Redis) -> None:
    """Race the deadline of a waiter against the release, many times: afterwards the lock must always be free."""
    outcomes = set()
    for n in range(60):
        gate = Lock("a", LONG_S).acquire()
        thread = threading.Thread(target=lambda: outcomes.add(type(outcome(0.05))))
        thread.start()
        time.sleep(0.045 + n % 10 * 0.001)
        gate.release()
        thread.join(10)
        free = Lock("a", LONG_S).acquire(5)
        free.release()
    assert outcomes <= {Held, LockBusy}
    assert queue_of(redis, "a") == 0


def outcome(wait_s: float) -> Any:
    try:
        held = Lock("a", LONG_S).acquire(wait_s)
    except LockBusy as exc:
        return exc
    held.release()
    return held


def test_turn_that_was_heard_too_late_is_not_taken_for_the_lock(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stood still while its turn came must not begin under a lease that is over."""
    from worker.locks import turns as module

    late = threading.Event()

    def slow(self: module.Turn, timeout: float) -> int:
        fence = heard(self, timeout)
        if fence and not late.is_set():
            late.set()
            between.append(eventually(lambda: other("a", 5), 10))
        return fence

    heard, between = module.Turn.wait, []
    gate = Lock("a", LONG_S).acquire()
    monkeypatch.setattr(module.Turn, "wait", slow)
    found: list[tuple[Held, bool]] = []
    waiter = threading.Thread(target=lambda: found.append(((held := Lock("a", 1.5).acquire(30)), held.lost.is_set())))
    waiter.start()
    eventually(lambda: queue_of(redis, "a") == 1, 10)
    gate.release()
    assert late.wait(10)
    eventually(lambda: between, 10)
    time.sleep(0.2)
    assert not found, "two hold it"
    between[0].release()
    waiter.join(10)
    ((held, lost),) = found
    assert not lost
    assert held.fence > between[0].fence
    held.release()


def test_interrupted_waiter_leaves_the_queue(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.locks import turns as module

    monkeypatch.setattr(module.Turn, "wait", lambda self, timeout: (_ for _ in ()).throw(KeyboardInterrupt))
    held = other("a")
    assert held
    with pytest.raises(KeyboardInterrupt):
        Lock("a", LONG_S).acquire(20)
    assert queue_of(redis, "a") == 0
    held.release()
    Lock("a", LONG_S).acquire().release()


# ---- a lost answer


def test_try_whose_answer_was_lost_is_recognised_by_the_next(redis: Redis, stack: Any) -> None:
    lock = Lock("a", LONG_S)
    with answers_lost(), pytest.raises(StoreUnavailable):
        lock.try_acquire()
    token = redis.get(keys.lock("a"))
    assert token, "the server did not take it"
    held = eventually(lock.try_acquire, 5)
    assert held.token.encode() == token
    assert other("a") is None
    held.release()
    assert other("a")


def test_waiter_goes_on_at_once_though_the_answer_to_the_release_that_served_it_was_lost(redis: Redis) -> None:
    served: list[int] = []
    gate = Lock("a", LONG_S).acquire()
    (thread,) = waiters(redis, "a", 1, lambda n, held: served.append(n))
    started = time.monotonic()
    with answers_lost():
        assert gate.release(), "it was held until then"
    thread.join(20)
    assert served == [0]
    assert time.monotonic() - started < queued._ASK_S / 2, "it went on only when it asked by itself"


@contextmanager
def answers_lost() -> Iterator[None]:
    """Let the server do what it is asked for within the block, and lose its answers to this thread on the way."""
    whole, here = client.Client.ask, threading.get_ident()

    def lose(self: client.Client, wanted: Any) -> Any:
        answers = whole(self, wanted)
        if threading.get_ident() == here:
            raise StoreUnavailable("the answer was lost")
        return answers

    client.Client.ask = lose  # type: ignore[method-assign]
    try:
        yield
    finally:
        client.Client.ask = whole  # type: ignore[method-assign]


# ---- semaphores


def test_semaphore_has_so_many_holders_and_serves_those_who_wait_in_order(redis: Redis) -> None:
    most, now, order = 0, 0, []
    guard = threading.Lock()

    def use(n: int) -> None:
        nonlocal most, now
        with Semaphore("s", 3, LONG_S).acquire(30):
            with guard:
                now += 1
                most = max(most, now)
                order.append(n)
            time.sleep(0.01)
            with guard:
                now -= 1

    gates = [Semaphore("s", 3, LONG_S).acquire() for _ in range(3)]
    threads = []
    for n in range(30):
        threads.append(threading.Thread(target=use, args=(n,)))
        threads[-1].start()
        eventually(lambda n=n: redis.llen(keys.waiters(keys.semaphore("s"))) == n + 1, 10)
    for gate in gates:
        gate.release()
    for thread in threads:
        thread.join(30)
    assert most == 3
    # Three run side by side: each starts within the three that were served with it.
    assert all(abs(place - n) <= 3 for place, n in enumerate(order))


def test_permit_of_a_dead_holder_comes_back_and_the_others_keep_theirs() -> None:
    Semaphore("s", 2, 0.3, renew=False).acquire()
    kept = Semaphore("s", 2, 1.5).acquire()  # long enough to be renewed on a machine that pauses
    assert Semaphore("s", 2, 0.3).try_acquire() is None
    assert eventually(Semaphore("s", 2, 0.3).try_acquire, 5)
    time.sleep(1.7)
    assert not kept.lost.is_set()
    assert kept.release()


# ---- for people


def test_listing_tells_holder_age_fence_time_left_and_who_waits(redis: Redis) -> None:
    held = Lock("report:7", LONG_S, holder="clerk").acquire()
    permit = Semaphore("gpu", 2, LONG_S).acquire()
    redis.set(keys.job_lock("some-id"), "token", px=10_000)
    threads = waiters(redis, "report:7", 1, lambda n, held: None)
    semaphore, lock = sorted(list_locks(), key=lambda found: found.name)
    assert (lock.name, lock.kind, lock.holder, lock.fence, lock.waiting) == ("report:7", "lock", "clerk", held.fence, 1)
    assert 0 <= (lock.age_s or -1) < 20
    assert 0 < (lock.left_s or 0) <= LONG_S
    assert (semaphore.name, semaphore.kind, semaphore.waiting) == ("gpu", "semaphore", 0)
    assert [found.name for found in list_locks(jobs=True) if found.kind == "job"] == ["some-id"]
    assert len(picture_of("report:7").waiting) == 1
    held.release()
    permit.release()
    threads[0].join(10)


def test_broken_lock_goes_to_the_next_who_waits_and_its_holder_is_told(redis: Redis) -> None:
    held = other("a", 0.6)
    assert held
    fences: list[int] = []
    threads = waiters(redis, "a", 1, lambda n, mine: fences.append(mine.fence))
    assert break_lock("a") is True
    threads[0].join(10)
    assert fences[0] > held.fence
    assert held.lost.wait(5)
    assert held.release() is False
    assert break_lock("a") is False


# ---- keys and bad input


def test_every_key_that_locks_leave_has_a_life(redis: Redis) -> None:
    gate = Lock("a", LONG_S).acquire()
    permit = Semaphore("a", 1, LONG_S).acquire()
    threads = waiters(redis, "a", 2, lambda n, held: None)
    found = set(redis.scan_iter("holdfast:*"))
    assert len(found) == 5
    assert all(redis.pttl(key) > 0 for key in found)
    gate.release()
    permit.release()
    for thread in threads:
        thread.join(10)
    left = {key.decode() for key in redis.scan_iter("holdfast:*")}
    assert left == {keys.fence(keys.lock("a")), keys.fence(keys.semaphore("a"))}


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Lock("", 1), "name: ''"),
        (lambda: Lock("a\nb", 1), "name: 'a\\\\nb'"),
        (lambda: Lock(7, 1), "name: 7"),  # type: ignore[arg-type]
        (lambda: Lock("a" * 256, 1), "255 printable"),
        (lambda: Lock("\ud800", 1), "name: "),
        (lambda: Lock("a", 0), "ttl_s: 0"),
        (lambda: Lock("a", -1), "ttl_s: -1"),
        (lambda: Lock("a", math.nan), "ttl_s: nan"),
        (lambda: Lock("a", math.inf), "ttl_s: inf"),
        (lambda: Lock("a", None), "ttl_s: None"),  # type: ignore[arg-type]
        (lambda: Lock("a", True), "ttl_s: True"),
        (lambda: Lock("a", "10"), "ttl_s: '10'"),  # type: ignore[arg-type]
        (lambda: Lock("a", 1, holder="two words"), "holder: 'two words'"),
        (lambda: Lock("a", 1).acquire(-1), "wait_s: -1"),
        (lambda: Lock("a", 1).acquire(None), "wait_s: None"),  # type: ignore[arg-type]
        (lambda: Semaphore("s", 0, 1), "permits: 0"),
        (lambda: Semaphore("s", 1.5, 1), "permits: 1.5"),  # type: ignore[arg-type]
        (lambda: picture_of(""), "name: ''"),
        (lambda: break_lock(" \t"), "name: "),
    ],
)
def test_bad_input_is_one_clear_error(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(InvalidLock, match=told):
        make()


def test_zero_ttl_cannot_be_extended_to() -> None:
    with Lock("a", LONG_S).acquire() as held:
        with pytest.raises(InvalidLock, match="ttl_s: 0"):
            held.extend(0)
        held.check()


@pytest.mark.parametrize("name", ["a b", "{x}", "a}b{", "ünï:☃", "a:fence", "x" * 255])
def test_name_of_any_printable_signs_is_a_lock_of_its_own(redis: Redis, name: str) -> None:
    with Lock(name, LONG_S).acquire():
        assert other(name) is None
        threads = waiters(redis, name, 1, lambda n, held: None)
        assert [found.name for found in list_locks()] == [name]
    threads[0].join(10)
    assert not threads[0].is_alive()
