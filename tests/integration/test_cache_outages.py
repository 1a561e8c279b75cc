"""The cache Redis stopped, hung, flushed and full: callers see no error of it, loads stay few, and it comes back by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from tests.harness import eventually
from worker.cache import MISSING, LocalCache, Region, invalidate
from worker.embedded import Stack
from worker.errors import LoadFailed
from worker.telemetry import CACHE_BYPASSES, CACHE_FAILURES

BREAKS: dict[str, Callable[[Stack], None]] = {
    "stopped": lambda stack: stack.cache.kill(),
    "hung": lambda stack: stack.cache.freeze(),
}


@pytest.fixture(params=BREAKS)
def broken(request: pytest.FixtureRequest, stack: Stack, env: dict[str, str]) -> Callable[[], None]:
    """Break the cache Redis when called."""
    return lambda: BREAKS[request.param](stack)


def mend(stack: Stack) -> None:
    stack.cache.thaw()
    stack.cache.start()


class Crowd:
    """Callers that ask at once, and how many loads ran at a time."""

    def __init__(self, loads_s: float = 0.02) -> None:
        self.loads = self.running = self.most = 0
        self._lock = threading.Lock()
        self._loads_s = loads_s

    def load(self) -> int:
        with self._lock:
            self.loads += 1
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(self._loads_s)
        with self._lock:
            self.running -= 1
        return 7

    def ask(self, region: Region, wanted: list[str]) -> list[Any]:
        answers: list[Any] = []

        def one(key: str) -> None:
            try:
                answers.append(region.get_or_load(key, self.load))
            except Exception as exc:
                answers.append(exc)

        threads = [threading.Thread(target=one, args=(key,)) for key in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers


def test_callers_load_for_themselves_a_few_at_a_time_until_it_is_back(broken: Callable[[], None], stack: Stack) -> None:
    region, crowd = Region("away", ttl=60), Crowd()
    region.get_or_load("k0", crowd.load)
    broken()
    before = CACHE_BYPASSES.labels("away")._value.get()
    assert crowd.ask(region, [f"k{n}" for n in range(60)]) == [7] * 60
    assert crowd.loads == 61
    assert crowd.most <= 8
    assert CACHE_BYPASSES.labels("away")._value.get() == before + 60
    mend(stack)
    assert eventually(lambda: region.get_or_load("new", crowd.load) and region.get("new") == 7, 5)


def test_callers_of_one_key_share_a_load(broken: Callable[[], None]) -> None:
    region, crowd = Region("r", ttl=60), Crowd(0.2)
    broken()
    region.get_or_load("warmed up", crowd.load)
    crowd.loads = 0
    assert crowd.ask(region, ["k"] * 50) == [7] * 50
    assert crowd.loads <= 5, "one that runs, and one for those who asked after it began"
    assert crowd.most == 1


def test_nothing_raises_while_it_is_away(broken: Callable[[], None]) -> None:
    region = Region("r", ttl=60)
    broken()
    assert region.get("k") is MISSING
    assert not region.set("k", 1)
    assert not region.invalidate("k")
    assert not region.invalidate_tags("t")
    assert not invalidate(["r:k"], ["t"])
    assert region.get_many_or_load(["a", "b"], lambda wanted: {"a": 1}, tags=["t"]) == {"a": 1, "b": None}
    report = region.refresh("k", lambda: 1)
    assert (report.advanced, report.outcome) == (False, "away")


def test_hung_server_costs_its_deadline_once_and_not_each_caller(stack: Stack, env: dict[str, str]) -> None:
    region = Region("r", ttl=60)
    region.get_or_load("k", lambda: 1)
    stack.cache.freeze()
    begun = time.monotonic()
    for n in range(200):
        region.get_or_load(f"k{n}", lambda: 1)
    assert time.monotonic() - begun < 5.0, "200 deadlines would be 10 s"


def test_loader_that_fails_without_it_is_raised_to_its_caller_and_told_to_the_others(broken: Callable[[], None]) -> None:
    region = Region("r", ttl=60)
    broken()

    def load() -> None:
        time.sleep(0.2)
        raise RuntimeError("no database")

    answers = Crowd.ask(type("Failing", (Crowd,), {"load": lambda self: load()})(), region, ["k"] * 10)
    assert {type(answer) for answer in answers} == {RuntimeError, LoadFailed}
    assert all("no database" in str(answer) for answer in answers)


def test_load_that_outlives_it_reaches_its_callers(broken: Callable[[], None]) -> None:
    region, crowd = Region("outlived", ttl=60, max_wait_s=20), Crowd(1.0)
    lost = CACHE_FAILURES.labels("outlived", "not stored")._value.get()
    threading.Timer(0.5, broken).start()
    begun = time.monotonic()
    assert crowd.ask(region, ["k"] * 20) == [7] * 20
    assert time.monotonic() - begun < 5
    assert CACHE_FAILURES.labels("outlived", "not stored")._value.get() == lost + 1


def test_flush_costs_one_load_of_each_key(cache: Redis, env: dict[str, str], conf: Callable[..., None]) -> None:
    conf(cache_timeout_ms=2000)
    region, crowd = Region("r", ttl=60), Crowd()
    wanted = [f"k{n % 5}" for n in range(50)]
    crowd.ask(region, wanted)
    cache.flushall()
    cache.script_flush()
    assert crowd.ask(region, wanted) == [7] * 50
    assert crowd.loads == 10


def test_full_server_costs_the_storing_and_nothing_else(cache: Redis, env: dict[str, str]) -> None:
    region = Region("full", ttl=60)
    cache.config_set("maxmemory-policy", "noeviction")
    cache.config_set("maxmemory", "1")
    try:
        assert region.get_or_load("k", lambda: 1) == 1
        assert not region.set("k", 2)
    finally:
        cache.config_set("maxmemory", "256mb")
        cache.config_set("maxmemory-policy", "allkeys-lfu")
    assert region.get_or_load("k", lambda: 3) == region.get("k") == 3


def test_layer_in_memory_gives_nothing_it_could_have_missed_the_end_of(broken: Callable[[], None], stack: Stack) -> None:
    region = Region("local", ttl=60, local=LocalCache(10, 60))
    assert region.local
    eventually(lambda: region.get_or_load("k", lambda: 1) and region.local and region.local.held)
    broken()
    assert eventually(lambda: region.local and not region.local.held, 5)
    assert region.get_or_load("k", lambda: 2) == 2
    mend(stack)
    assert eventually(lambda: region.get_or_load("k", lambda: 3) and region.local and region.local.held, 5)


def test_loads_inside_loads_need_no_second_place_while_redis_is_away(stack: Stack, conf: Callable[..., None]) -> None:
    conf(cache_bypass_loads=2)
    outer, inner = Region("outer", ttl=60, max_wait_s=10), Region("inner", ttl=60, max_wait_s=10)
    stack.cache.kill()
    both = threading.Barrier(2)

    def load(n: int) -> Any:
        both.wait(10)  # both places are taken
        return inner.get_or_load(str(n), lambda: n) + inner.get_many_or_load(["a"], lambda keys: {"a": 0})["a"]

    got: dict[int, int] = {}
    threads = [
        threading.Thread(target=lambda n=n: got.setdefault(n, outer.get_or_load(str(n), lambda: load(n)))) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == {n: n for n in range(4)}
