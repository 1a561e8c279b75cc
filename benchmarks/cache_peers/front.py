"""Callers of a cache, written once as coroutines: tasks of an async cache, threads of a blocking one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

#: A caller, or a loader.
Code = Callable[[], Coroutine[Any, Any, Any]]


class Threads:
    """Each caller is a thread; what it awaits blocks, so its coroutine runs through without a loop."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    async def ask(self, key: str, load: Code) -> Any:
        """Read through the cache."""
        return self._cache.get_or_load(key, lambda: _through(load()))

    async def delete(self, key: str) -> None:
        """Invalidate."""
        self._cache.delete(key)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(max(0.0, seconds))

    def run(self, callers: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """Run all at the same time and return what each returned."""
        with ThreadPoolExecutor(len(callers)) as pool:
            return list(pool.map(_through, callers))


class Tasks:
    """Each caller is a task of one event loop."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._runner = asyncio.Runner()

    async def ask(self, key: str, load: Code) -> Any:
        """Read through the cache."""
        return await self._cache.get_or_load(key, load)

    async def delete(self, key: str) -> None:
        """Invalidate."""
        await self._cache.delete(key)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(max(0.0, seconds))

    def run(self, callers: Sequence[Awaitable[Any]]) -> list[Any]:
        """Run all at the same time and return what each returned."""

        async def all_of_them() -> list[Any]:
            return list(await asyncio.gather(*callers))

        return self._runner.run(all_of_them())


#: Either of them.
Front = Threads | Tasks


def _through(code: Coroutine[Any, Any, Any]) -> Any:
    try:
        code.send(None)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError(f"{code!r} awaited what does not block")
