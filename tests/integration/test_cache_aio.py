"""The asynchronous region: the same scripts and promises, for tasks, beside threads that use the blocking one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from tests.harness import eventually
from worker.cache import MISSING, AsyncRegion, LocalCache, Region, cached
from worker.cache import aio as cache_aio
from worker.cache import terms as cache_terms
from worker.embedded import Stack
from worker.errors import CacheKeyError, LoadFailed
from worker.store import keys
from worker.telemetry import CACHE_WAITS

pytestmark = pytest.mark.usefixtures("env", "patient")


@pytest.fixture
def patient(conf: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Redis, and tests between two loads, time on a busy machine."""
    conf(cache_timeout_ms=2000)
    monkeypatch.setattr(cache_terms, "_BACK_OFF_MS", 1000)


async def until(predicate: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not predicate():
            await asyncio.sleep(0.01)


def test_value_is_loaded_once_by_many_tasks_and_then_found() -> None:
    async def main() -> None:
        region = AsyncRegion("r", ttl=60)
        loads: list[int] = []

        async def load() -> int:
            loads.append(1)
            await asyncio.sleep(0.2)
            return 7

        assert await region.get("k") is MISSING
        assert await asyncio.gather(*(region.get_or_load("k", load) for _ in range(300))) == [7] * 300
        assert await region.get_or_load("plain", lambda: 8) == await region.get("plain") == 8
        assert loads == [1]

    asyncio.run(main())


def test_tasks_wait_for_a_thread_and_threads_for_a_task() -> None:
    blocking, tasks = Region("r", ttl=60), AsyncRegion("r", ttl=60)
    began, may_end = threading.Event(), threading.Event()
    waits = CACHE_WAITS.labels("r")._value.get()

    def load() -> int:
        began.set()
        may_end.wait(10)
        return 7

    async def main() -> None:
        loop = asyncio.get_running_loop()
        thread = loop.run_in_executor(None, blocking.get_or_load, "k", load)
        await until(began.is_set)
        waiting = asyncio.gather(*(tasks.get_or_load("k", lambda: 8) for _ in range(20)))
        await until(lambda: CACHE_WAITS.labels("r")._value.get() == waits + 20)
        may_end.set()
        assert await waiting == [7] * 20
        assert await thread == 7

        go = asyncio.Event()

        async def slow() -> int:
            await go.wait()
            return 9

        task = asyncio.create_task(tasks.get_or_load("other", slow))
        await asyncio.sleep(0.1)
        thread = loop.run_in_executor(None, blocking.get_or_load, "other", lambda: 10)
        await until(lambda: CACHE_WAITS.labels("r")._value.get() == waits + 21)
        go.set()
        assert (await task, await thread) == (9, 9)

    asyncio.run(main())


def test_cancelled_load_gives_its_lease_to_who_waits() -> None:
    async def main() -> None:
        region = AsyncRegion("r", ttl=60)
        began = asyncio.Event()

        async def never() -> int:
            began.set()
            await asyncio.sleep(60)
            return 1

        loading = asyncio.create_task(region.get_or_load("k", never))
        await began.wait()
        waiting = asyncio.create_task(region.get_or_load("k", lambda: 2))
        await asyncio.sleep(0.2)
        loading.cancel()
        async with asyncio.timeout(1.5):
            assert await waiting == 2
        with pytest.raises(asyncio.CancelledError):
            await loading

    asyncio.run(main())


def test_cancelled_waiter_leaves_the_load_to_the_others() -> None:
    async def main() -> None:
        region = AsyncRegion("r", ttl=60)

        async def load() -> int:
            await asyncio.sleep(0.3)
            return 7

        loading = asyncio.create_task(region.get_or_load("k", load))
        await asyncio.sleep(0.05)
        impatient, patient = (asyncio.create_task(region.get_or_load("k", load)) for _ in range(2))
        await asyncio.sleep(0.05)
        impatient.cancel()
        assert await asyncio.gather(loading, patient) == [7, 7]

    asyncio.run(main())


def test_writes_tags_many_and_refresh_are_as_in_the_blocking_region() -> None:
    async def main() -> None:
        region = AsyncRegion("r", ttl=60)
        assert await region.write_through("k", 7, version=7, tags=["t"])
        assert not await region.write_through("k", 6, version=6)
        assert await region.get("k") == 7
        assert await region.invalidate_tags("t")
        assert await region.get("k") is MISSING

        async def load(wanted: list[str]) -> dict[str, int]:
            return dict.fromkeys(wanted, 1)

        assert await region.get_many_or_load(["a", "b"], load) == {"a": 1, "b": 1}
        assert await region.set("a", 2)
        assert await region.delete("b")
        assert await region.get_many_or_load(["a", "b"], lambda wanted: {}) == {"a": 2, "b": None}
        report = await region.refresh("a", lambda: 3)
        assert (report.advanced, await region.get("a")) == (True, 3)
        with pytest.raises(CacheKeyError, match="tags='t'"):
            await region.get_or_load("k", int, tags="t")

    asyncio.run(main())


def test_failure_is_raised_to_its_task_and_told_to_the_others() -> None:
    async def main() -> None:
        region = AsyncRegion("r", ttl=60)

        async def load() -> int:
            await asyncio.sleep(0.2)
            raise RuntimeError("no database")

        answers = await asyncio.gather(*(region.get_or_load("k", load) for _ in range(20)), return_exceptions=True)
        assert sorted(type(answer).__name__ for answer in answers) == ["LoadFailed"] * 19 + ["RuntimeError"]

    asyncio.run(main())


def test_stale_value_is_served_while_a_task_refreshes_it() -> None:
    async def main() -> None:
        region = AsyncRegion("r", ttl=0.2, jitter=0, stale_while_revalidate=60)
        values = iter(range(1, 100))

        async def load() -> int:
            await asyncio.sleep(0.1)
            return next(values)

        assert await region.get_or_load("k", load) == 1
        await asyncio.sleep(0.3)
        assert await asyncio.gather(*(region.get_or_load("k", load) for _ in range(20))) == [1] * 20
        await until(lambda: not cache_aio._tasks)
        assert await region.get("k") == 2

    asyncio.run(main())


@pytest.mark.parametrize("how", ["stopped", "hung"])
def test_tasks_load_for_themselves_a_few_at_a_time_while_redis_is_away(stack: Stack, conf: Callable[..., None], how: str) -> None:
    conf(cache_timeout_ms=200)

    async def main() -> None:
        region = AsyncRegion("r", ttl=60)
        await region.get_or_load("k", lambda: 1)
        if how == "stopped":
            stack.cache.kill()
        else:
            stack.cache.freeze()
        running = [0, 0]

        async def load() -> int:
            running[0] += 1
            running[1] = max(running)
            await asyncio.sleep(0.02)
            running[0] -= 1
            return 7

        assert await asyncio.gather(*(region.get_or_load(f"k{n}", load) for n in range(40))) == [7] * 40
        assert running[1] <= 8
        assert not await region.invalidate("k")
        stack.cache.thaw()
        stack.cache.start()
        async with asyncio.timeout(10):
            while await region.get("back") is MISSING:
                await region.get_or_load("back", load)
                await asyncio.sleep(0.05)

    asyncio.run(main())


def test_async_function_is_read_through_the_cache() -> None:
    loads: list[int] = []

    @cached(ttl=60, name="test.aio.double")
    async def double(number: int) -> int:
        loads.append(number)
        return 2 * number

    async def main() -> None:
        assert [await double(4), await double(number=4), await double.get(4)] == [8, 8, 8]
        assert (await double.refresh(4)).advanced
        assert await double.invalidate(4)
        assert await double.get(4) is MISSING

    asyncio.run(main())
    assert loads == [4, 4]


def test_layer_in_memory_serves_tasks_and_is_dropped(cache: Redis) -> None:
    region = AsyncRegion("local", ttl=60, local=LocalCache(10, 60))

    async def main() -> None:
        async with asyncio.timeout(10):
            while not (region.local and region.local.held):
                assert await region.get_or_load("k", lambda: 1) == 1
                await asyncio.sleep(0.02)
        cache.delete(keys.cache_entry("local:k"))
        assert await region.get_or_load("k", lambda: 2) == 1, "from memory"
        await region.invalidate("k")
        assert await region.get_or_load("k", lambda: 2) == 2

    asyncio.run(main())


def test_error_of_a_loader_that_sounds_like_an_outage_is_the_loaders() -> None:
    from worker.errors import StoreUnavailable

    def load() -> int:
        raise StoreUnavailable("the loader's own")

    with pytest.raises(StoreUnavailable, match="own"):
        Region("r", ttl=60).get_or_load("k", load)
    with pytest.raises(LoadFailed):
        Region("r", ttl=60).get_or_load("k", load)


def test_connections_of_event_loops_that_ended_are_closed(cache: Redis) -> None:
    region = AsyncRegion("loops", ttl=60)

    async def read(n: int) -> Any:
        return await region.get_or_load(str(n), lambda: n)

    before = cache.info("clients")["connected_clients"]
    assert [asyncio.run(read(n)) for n in range(20)] == list(range(20))
    eventually(lambda: cache.info("clients")["connected_clients"] <= before + 2)


def test_async_loads_inside_loads_need_no_second_place_while_redis_is_away(stack: Stack, conf: Callable[..., None]) -> None:
    conf(cache_bypass_loads=2)
    outer, inner = AsyncRegion("outer", ttl=60, max_wait_s=10), AsyncRegion("inner", ttl=60, max_wait_s=10)
    stack.cache.kill()

    async def load(n: int) -> int:
        await asyncio.sleep(0.05)
        return await inner.get_or_load(str(n), lambda: n)

    async def many() -> list[int]:
        return await asyncio.gather(*(outer.get_or_load(str(n), lambda n=n: load(n)) for n in range(6)))

    assert asyncio.run(many()) == list(range(6))
