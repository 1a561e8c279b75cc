"""aiocache with its guard against stampedes."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiocache import Cache as Backend
from aiocache import cached_stampede
from aiocache.serializers import JsonSerializer

from benchmarks.cache_peers import LOCK_S

TITLE = "aiocache"
PACKAGE = "aiocache"
SETUP = f"cached_stampede, lease of {LOCK_S} s, JSON"
IS_ASYNC = True
EARLY = ""
LAYER = "its ttl alone"


class Cache:
    """A function whose key and loader are its arguments, decorated."""

    def __init__(self, ttl: float, *, early: bool = False, in_memory: bool = False) -> None:
        server = urlsplit(os.environ["CACHE_URL"])
        where: dict[str, Any] = {
            "cache": Backend.REDIS, "endpoint": server.hostname, "port": server.port, "password": server.password
        }  # fmt: skip
        if in_memory:
            where = {"cache": Backend.MEMORY}
        self._read = cached_stampede(
            lease=LOCK_S, ttl=float(ttl), key_builder=lambda _, key, loader: key, serializer=JsonSerializer(), **where
        )(_load)

    async def get_or_load(self, key: str, loader: Callable[[], Awaitable[Any]]) -> Any:
        """Return the value of a key."""
        return await self._read(key, loader)

    async def delete(self, key: str) -> None:
        """Forget a key."""
        await self._read.cache.delete(key)


async def _load(key: str, loader: Callable[[], Awaitable[Any]]) -> Any:
    return await loader()
