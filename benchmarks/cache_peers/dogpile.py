"""dogpile.cache with its lock in Redis and regeneration in a thread, as its documentation shows it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from dogpile.cache import make_region

from benchmarks.cache_peers import LOCK_S

TITLE = "dogpile.cache"
PACKAGE = "dogpile.cache"
SETUP = f"distributed_lock of {LOCK_S} s, async_creation_runner"
IS_ASYNC = False
EARLY = "past its time, in a thread"
LAYER = "its ttl alone"


class Cache:
    """A region whose expired values are given while one thread of the fleet makes a new one."""

    def __init__(self, ttl: float, *, early: bool = False, in_memory: bool = False) -> None:
        region = make_region(async_creation_runner=_in_a_thread)
        if in_memory:
            region.configure("dogpile.cache.memory", expiration_time=ttl)
        else:
            arguments = {
                "url": os.environ["CACHE_URL"], "distributed_lock": True, "thread_local_lock": False, "lock_timeout": LOCK_S,
                "redis_expiration_time": int(2 * ttl) + 1,
            }  # fmt: skip
            region.configure("dogpile.cache.redis", expiration_time=ttl, arguments=arguments)
        self.get_or_load, self.delete = region.get_or_create, region.delete


def _in_a_thread(region: Any, key: str, creator: Callable[[], Any], mutex: Any) -> None:
    def run() -> None:
        try:
            region.set(key, creator())
        finally:
            mutex.release()

    threading.Thread(target=run, daemon=True).start()
