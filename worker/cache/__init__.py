"""Cache-aside in front of a slower source: one load at a time in the fleet, and nothing stale after an invalidation."""

from worker.cache.aio import AsyncRegion
from worker.cache.cached import Cached, cached, loaders, set_refresher
from worker.cache.call import MISSING, Missing
from worker.cache.local import LocalCache
from worker.cache.refreshing import Refreshed
from worker.cache.region import Region, invalidate

__all__ = [
    "MISSING",
    "AsyncRegion",
    "Cached",
    "LocalCache",
    "Missing",
    "Refreshed",
    "Region",
    "cached",
    "invalidate",
    "loaders",
    "set_refresher",
]
