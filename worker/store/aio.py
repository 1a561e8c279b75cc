"""Redis roles for asyncio: the same commands and errors as the blocking client, a pool for each event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from worker.settings import settings
from worker.store.breaker import Breaker
from worker.store.client import ASKING, Command
from worker.store.scripts import taught


class AsyncRole:
    """One Redis server in one role, for the tasks of one event loop; never retries by itself."""

    def __init__(self, name: str, url: str, timeout_s: float) -> None:
        self.name = name
        self.breaker = Breaker(name)
        self._turns = asyncio.Semaphore(ASKING)
        self._timeout_s = timeout_s
        #: Connections that nobody has borrowed; the pool only makes them: to lend one costs it as much as a command.
        self._idle: list[Any] = []
        self._pool = redis.asyncio.ConnectionPool.from_url(
            url,
            socket_timeout=None,  # one for all that a question takes is set around it
            socket_connect_timeout=timeout_s,
            socket_keepalive=True,
            health_check_interval=15,
            retry=Retry(NoBackoff(), 0),
            client_name=f"holdfast-{name}-aio",
        )

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in one round trip and return their bare answers, no transaction; of many tasks, `ASKING` at a time.

        Raises `StoreFull`, `StoreRefused` and `StoreUnavailable` as `Role.use`.
        """
        async with self._turns:
            return await self._ask_guarded(commands)

    async def _ask_guarded(self, commands: Sequence[Command]) -> list[Any]:
        probe = self.breaker.admit()  # after the turn has come: what failed meanwhile is known
        failure: BaseException | None = None
        try:
            return await self._ask_all(commands)
        except BaseException as exc:
            failure = exc
            raise
        finally:
            if probe or failure is not None:
                found = self.breaker.passed(probe, failure)
                if found is not None:
                    raise found from failure

    async def _ask_all(self, commands: Sequence[Command]) -> list[Any]:
        answers = await self._ask(commands)
        unknown = [i for i, answer in enumerate(answers) if isinstance(answer, redis.exceptions.NoScriptError)]
        if unknown:
            again = await self._ask([taught(commands[i]) for i in unknown])
            for i, answer in zip(unknown, again, strict=True):
                answers[i] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def _ask(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._idle.pop() if self._idle else self._pool.make_connection()
        try:
            async with asyncio.timeout(self._timeout_s):
                if not connection.is_connected or connection._reader.at_eof():
                    await connection.disconnect(nowait=True)
                    await connection.connect()
                await connection.send_packed_command(connection.pack_commands(commands))
                return [await _answer(connection) for _ in commands]
        except BaseException:
            await connection.disconnect(nowait=True)  # answers that were not read must not be taken for those to the next
            raise
        finally:
            self._idle.append(connection)

    async def close(self) -> None:
        """Close the connections that nobody has borrowed."""
        while self._idle:
            await self._idle.pop().disconnect()

    def abandon(self) -> None:
        """Close the connections of an event loop that is closed, in which nothing can be awaited any more."""
        while self._idle:
            writer = self._idle.pop()._writer
            if writer is not None:
                with suppress(OSError):
                    writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


async def _answer(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except redis.exceptions.ResponseError as exc:
        return exc


_roles: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, AsyncRole]] = WeakKeyDictionary()


def cache() -> AsyncRole:
    """Return the server that holds what Postgres can give again, for the running event loop."""
    roles = _of_this_loop()
    if "cache" not in roles:
        conf = settings()
        roles["cache"] = AsyncRole("cache", conf.cache_url, conf.cache_timeout_ms / 1000)
    return roles["cache"]


def limits() -> AsyncRole:
    """Return the coordination server for those who must decide at once, for the running event loop."""
    roles = _of_this_loop()
    if "limits" not in roles:
        conf = settings()
        roles["limits"] = AsyncRole("limits", conf.redis_url, conf.limits_timeout_ms / 1000)
    return roles["limits"]


def coordination() -> AsyncRole:
    """Return the server that holds sessions and presence and must not evict, for the running event loop."""
    roles = _of_this_loop()
    if "coordination" not in roles:
        conf = settings()
        roles["coordination"] = AsyncRole("coordination", conf.redis_url, conf.redis_timeout_s)
    return roles["coordination"]


def _of_this_loop() -> dict[str, AsyncRole]:
    loop = asyncio.get_running_loop()
    roles = _roles.get(loop)
    if roles is None:
        for ended in [other for other in _roles if other.is_closed()]:
            for role in _roles.pop(ended).values():
                role.abandon()  # it would keep its loop, and its loop it
        roles = _roles[loop] = {}
    return roles


async def close() -> None:
    """Close the connections of the running event loop, which is about to end."""
    for role in _roles.pop(asyncio.get_running_loop(), {}).values():
        await role.close()
