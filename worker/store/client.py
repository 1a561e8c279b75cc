"""The two Redis roles: one client a process each, errors in our words, and a breaker that spares callers a dead server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.errors import SettingsError, StoreFull, StoreRefused, StoreUnavailable
from worker.settings import settings

#: Seconds for which a server that failed is not tried again: long enough to spare a busy worker most timeouts of a hung server,
#: short enough that its return is noticed at once.
BREAK_S = 1.0


class Role:
    """One Redis server in one role.

    The client never retries by itself: a retried INCR or lock would take effect twice. Callers repeat what is harmless to repeat.
    """

    def __init__(self, name: str, url: str) -> None:
        conf = settings()
        self.name = name
        self.client: redis.Redis = redis.Redis.from_url(
            url,
            socket_timeout=conf.redis_timeout_s,
            socket_connect_timeout=conf.redis_timeout_s,
            socket_keepalive=True,
            health_check_interval=15,
            retry=Retry(NoBackoff(), 0),
            client_name=f"holdfast-{name}",
        )
        self._closed_until = 0.0

    @property
    def away(self) -> bool:
        """Tell whether the server failed a moment ago and is not tried for now."""
        return time.monotonic() < self._closed_until

    @contextmanager
    def use(self) -> Iterator[redis.Redis]:
        """Lend the client.

        Raises `StoreFull` when the server is at its maxmemory, `StoreRefused` when it refuses the command, `StoreUnavailable`
        when it does not answer or did not a moment ago.
        """
        if self.away:
            raise StoreUnavailable(f"Redis ({self.name}) did not answer a moment ago")
        try:
            yield self.client
        except redis.exceptions.OutOfMemoryError as exc:
            raise StoreFull(f"Redis ({self.name}) is at its maxmemory and refuses writes") from exc
        except (redis.exceptions.ReadOnlyError, redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as exc:
            self._closed_until = time.monotonic() + BREAK_S
            raise StoreUnavailable(f"Redis ({self.name}) did not answer: {exc}") from exc
        except redis.exceptions.ResponseError as exc:
            raise StoreRefused(f"Redis ({self.name}) refused a command: {exc}") from exc


@lru_cache(maxsize=1)
def coordination() -> Role:
    """Return the server that holds broker and locks and must not evict."""
    return Role("coordination", settings().redis_url)


@lru_cache(maxsize=1)
def cache() -> Role:
    """Return the server that holds what Postgres can give again."""
    return Role("cache", settings().cache_url)


def check_policy() -> None:
    """Raise `SettingsError` when the coordination server would evict keys, which would be jobs and locks."""
    try:
        with coordination().use() as client:
            policy = client.info("memory")["maxmemory_policy"]
    except StoreRefused:
        return  # Managed servers may hide INFO as well; then nobody here can know.
    if policy != "noeviction":
        raise SettingsError(
            f"the Redis at REDIS_URL runs with maxmemory-policy {policy!r} and would evict queued jobs and locks: "
            "set `maxmemory-policy noeviction` on it, and use CACHE_URL for a server that evicts"
        )
