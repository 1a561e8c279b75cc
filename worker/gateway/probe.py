"""Looking whether the servers are there that the gateway needs."""

from __future__ import annotations

import asyncio
import time

from worker.db import check_schema
from worker.errors import LedgerUnavailable, SchemaOutdated, StoreUnavailable
from worker.store import coordination

#: Seconds for which an answer is given again: anybody may ask, and none shall wear out Postgres by it.
_AGAIN_S = 1.0


class Probe:
    """Looks at the servers, once a second at most."""

    def __init__(self) -> None:
        self._until = 0.0
        self._found: dict[str, str] = {}
        self._lock = asyncio.Lock()

    async def look(self) -> dict[str, str]:
        """Return how Postgres and Redis are."""
        async with self._lock:
            if time.monotonic() >= self._until:
                postgres, redis = await asyncio.gather(asyncio.to_thread(_postgres), asyncio.to_thread(_redis))
                self._found = {"postgres": postgres, "redis": redis}
                self._until = time.monotonic() + _AGAIN_S
            return self._found


def _postgres() -> str:
    try:
        check_schema()
    except SchemaOutdated:
        return "not migrated"
    except LedgerUnavailable:
        return "away"
    return "ready"


def _redis() -> str:
    try:
        with coordination().use() as client:
            client.ping()
    except StoreUnavailable:
        return "away"
    return "ready"
