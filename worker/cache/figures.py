"""How full the cache Redis is, how often it had what was asked for, and what it is owed."""

from __future__ import annotations

from typing import Any

import psycopg

from worker.cache import outbox
from worker.store import cache

#: What is told of the server, by Redis's own names.
_SERVER = ("used_memory", "maxmemory", "maxmemory_policy", "keyspace_hits", "keyspace_misses", "evicted_keys", "expired_keys")


def figures(conn: psycopg.Connection[Any]) -> dict[str, Any]:
    """Return the figures by name, `hit_rate` from 0 to 1 since the server began. Raises `StoreUnavailable`."""
    with cache().use() as client:
        told = {**client.info("memory"), **client.info("stats")}
        keys = client.dbsize()
    owed, oldest_s = outbox.owed(conn)
    asked = told["keyspace_hits"] + told["keyspace_misses"]
    return {
        "keys": keys, **{name: told.get(name) for name in _SERVER},
        "hit_rate": round(told["keyspace_hits"] / asked, 4) if asked else None,
        "owed_invalidations": owed, "oldest_owed_s": oldest_s,
    }  # fmt: skip
