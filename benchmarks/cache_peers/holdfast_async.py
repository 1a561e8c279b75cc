"""Holdfast's region for tasks."""

from __future__ import annotations

from worker.cache import AsyncRegion, LocalCache

TITLE = "Holdfast, async"
PACKAGE = "holdfast"
SETUP = "AsyncRegion, as it comes"
IS_ASYNC = True
EARLY = "XFetch, in a task"
LAYER = "messages of the fleet"


class Cache:
    """A region with its defaults."""

    def __init__(self, ttl: float, *, early: bool = False, in_memory: bool = False) -> None:
        region = AsyncRegion("bench", ttl=ttl, local=LocalCache(ttl_s=ttl) if in_memory else None)
        self.get_or_load, self.delete = region.get_or_load, region.delete
