"""cashews: a lock between two looks into the cache; for hot keys its `early`, with the times its documentation gives it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from cashews import Cache as Cashews

from benchmarks.cache_peers import LOCK_S

TITLE = "cashews"
PACKAGE = "cashews"
SETUP = f"cache around locked of {LOCK_S} s around cache; early at 0.7 of the ttl"
IS_ASYNC = True
EARLY = "early, in a task"
LAYER = "messages of the server"


class Cache:
    """A function whose key and loader are its arguments, decorated.

    `lock=True` would take the lock at each hit as well, and hold it for the whole ttl when its holder dies; this is sounder.
    """

    def __init__(self, ttl: float, *, early: bool = False, in_memory: bool = False) -> None:
        self._cache = Cashews()
        self._cache.setup(os.environ["CACHE_URL"], client_side=in_memory)
        kept = self._cache(ttl=ttl, key="{key}")
        alone = self._cache.locked(ttl=LOCK_S, key="{key}", check_interval=0.05)
        self._read = self._cache.early(ttl=ttl, early_ttl=0.7 * ttl, key="{key}")(_load) if early else kept(alone(kept(_load)))

    async def get_or_load(self, key: str, loader: Callable[[], Awaitable[Any]]) -> Any:
        """Return the value of a key."""
        return await self._read(key=key, loader=loader)

    async def delete(self, key: str) -> None:
        """Forget a key."""
        await self._cache.delete(key)


async def _load(key: str, loader: Callable[[], Awaitable[Any]]) -> Any:
    return await loader()
