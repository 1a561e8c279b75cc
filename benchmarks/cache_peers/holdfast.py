"""Holdfast's region for threads."""

from __future__ import annotations

from worker.cache import LocalCache, Region

TITLE = "Holdfast"
PACKAGE = "holdfast"
SETUP = "Region, as it comes"
IS_ASYNC = False
EARLY = "XFetch, in a thread"
LAYER = "messages of the fleet"


class Cache:
    """A region with its defaults."""

    def __init__(self, ttl: float, *, early: bool = False, in_memory: bool = False) -> None:
        region = Region("bench", ttl=ttl, local=LocalCache(ttl_s=ttl) if in_memory else None)
        self.get_or_load, self.delete = region.get_or_load, region.delete
