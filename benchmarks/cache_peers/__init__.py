"""The caches that are measured side by side, one module each, on the Redis that `CACHE_URL` names.

A module has `TITLE`, `PACKAGE` (its distribution), `SETUP` (its configuration, for people), `IS_ASYNC`, `EARLY` (how it renews a
hot value before its readers wait, empty when it does not), `LAYER` (what keeps its layer in the memory of the process true)
and a class `Cache(ttl, early=False, in_memory=False)` with `get_or_load(key, loader)` and `delete(key)`, which are
coroutine functions where it is async, as its loaders then are.
"""

#: In the order of the tables.
NAMES = ("holdfast", "holdfast_async", "dogpile", "cashews", "aiocache")
#: Seconds a peer's lock outlives its holder: as long as our lease.
LOCK_S = 3
