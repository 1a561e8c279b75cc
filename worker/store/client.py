"""The two Redis roles: clients that are lent, errors in our words, and a breaker that spares callers a dead server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.errors import SettingsError, StoreFull, StoreRefused, StoreUnavailable
from worker.settings import settings

#: Seconds for which a server that failed is not tried again: long enough to spare a busy worker most timeouts of a hung server,
#: short enough that its return is noticed at once.
BREAK_S = 1.0


class _OneConnection(redis.ConnectionPool):
    """The pool of a client that has one borrower at a time: one connection, and none of the bookkeeping, which costs more than
    a command does."""

    def get_connection(self, *_: Any, **__: Any) -> Any:
        """Return the connection; one that the server closed, or on which an answer was left behind, is made anew."""
        if not self._available_connections:
            self._available_connections.append(self.make_connection())
        connection = self._available_connections[0]
        try:
            if connection.can_read():
                connection.disconnect()
        except redis.exceptions.ConnectionError:
            connection.disconnect()
        return connection

    def release(self, connection: Any) -> None:
        """Keep the connection."""


class _Client(redis.Redis):
    """A client that sends a command and reads its answer; redis-py's retries and metrics, not used here, cost as much again."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command. A connection that fails in it closes itself."""
        connection = self.connection_pool.get_connection()
        connection.send_command(*args)
        return redis.Redis.parse_response(self, connection, args[0], **options)


class Role:
    """One Redis server in one role.

    Its clients never retry by themselves: a retried INCR or lock would take effect twice. Callers repeat what is harmless to
    repeat.
    """

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._url = url
        self._idle: list[redis.Redis] = []
        self._closed_until = 0.0

    def _client(self) -> redis.Redis:
        conf = settings()
        pool = _OneConnection.from_url(
            self._url,
            socket_timeout=conf.redis_timeout_s,
            socket_connect_timeout=conf.redis_timeout_s,
            socket_keepalive=True,
            health_check_interval=15,
            retry=Retry(NoBackoff(), 0),
            client_name=f"holdfast-{self.name}",
        )
        return _Client(connection_pool=pool)

    def pubsub(self) -> redis.client.PubSub:
        """Return a subscriber with a connection of its own, to be worked with inside `use`, which translates its errors."""
        subscriber: redis.client.PubSub = self._client().pubsub(ignore_subscribe_messages=True)
        return subscriber

    def close(self) -> None:
        """Close the connections that nobody has borrowed."""
        while self._idle:
            self._idle.pop().connection_pool.disconnect()

    @property
    def away(self) -> bool:
        """Tell whether the server failed a moment ago and is not tried for now."""
        return time.monotonic() < self._closed_until

    def run_id(self) -> str:
        """Return what tells this run of the server from any other; empty where the server does not say. Raises as `use`."""
        try:
            with self.use() as client:
                return str(client.info("server").get("run_id", ""))[:8]
        except StoreRefused:
            return ""

    @contextmanager
    def use(self) -> Iterator[redis.Redis]:
        """Lend a client to one thread.

        Raises `StoreFull` when the server is at its maxmemory, `StoreRefused` when it refuses the command, `StoreUnavailable`
        when it does not answer or did not a moment ago.
        """
        if self.away:
            raise StoreUnavailable(f"Redis ({self.name}) did not answer a moment ago")
        try:
            client = self._idle.pop()
        except IndexError:
            client = self._client()
        try:
            yield client
        except redis.exceptions.OutOfMemoryError as exc:
            raise StoreFull(f"Redis ({self.name}) is at its maxmemory and refuses writes") from exc
        except (redis.exceptions.ReadOnlyError, redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as exc:
            self._closed_until = time.monotonic() + BREAK_S
            raise StoreUnavailable(f"Redis ({self.name}) did not answer: {exc}") from exc
        except redis.exceptions.ResponseError as exc:
            raise StoreRefused(f"Redis ({self.name}) refused a command: {exc}") from exc
        except BaseException:
            client.connection_pool.disconnect()  # the answer to an interrupted command must not be taken for that to the next one
            raise
        finally:
            self._idle.append(client)


@lru_cache(maxsize=1)
def coordination() -> Role:
    """Return the server that holds broker and locks and must not evict."""
    return Role("coordination", settings().redis_url)


@lru_cache(maxsize=1)
def cache() -> Role:
    """Return the server that holds what Postgres can give again."""
    return Role("cache", settings().cache_url)


def _after_fork() -> None:
    coordination.cache_clear()
    cache.cache_clear()


os.register_at_fork(after_in_child=_after_fork)


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
