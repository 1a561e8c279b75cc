"""The two Redis roles, and the clients they lend to one thread at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.errors import SettingsError, StoreRefused
from worker.settings import settings
from worker.store.breaker import Breaker
from worker.store.scripts import taught
from worker.telemetry import OUTAGES

#: A command and its arguments, as Redis takes them.
Command = tuple[Any, ...]

#: Threads of one process that ask one server at a time. More would only queue in the server, where it counts against their
#: deadline, and a hundred that start together would need a hundred connections first.
ASKING = 8
#: Connections that are kept open for the next borrowers.
IDLE = 4 * ASKING


class _OneConnection(redis.ConnectionPool):
    """The pool of a client that has one borrower at a time: one connection, and none of the bookkeeping, which costs more than
    a command does."""

    #: Answers that nobody waited for and that are still to be read.
    owed = 0

    def get_connection(self, *_: Any, **__: Any) -> Any:
        """Return the connection; one that the server closed, or on which an answer was left behind, is made anew."""
        if not self._available_connections:
            self._available_connections.append(self.make_connection())
        connection = self._available_connections[0]
        if self.owed:
            self._settle_up(connection)
        try:
            if connection.can_read():
                connection.disconnect()
        except redis.exceptions.ConnectionError:
            connection.disconnect()
        return connection

    def _settle_up(self, connection: Any) -> None:
        """Read the answers that nobody waited for. Raises `TimeoutError` when they do not come: the server hangs."""
        owed, self.owed = self.owed, 0
        try:
            lost = sum(isinstance(_answer(connection), Exception) for _ in range(owed))
        except redis.exceptions.ConnectionError:
            connection.disconnect()
            lost = owed
        if lost:
            OUTAGES.labels("told", "lost").inc(lost)

    def release(self, connection: Any) -> None:
        """Keep the connection."""


class Client(redis.Redis):
    """A client that sends a command and reads its answer; redis-py's retries and metrics, not used here, cost as much again."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command. A connection that fails in it closes itself."""
        connection = self.connection_pool.get_connection()
        connection.send_command(*args)
        return redis.Redis.parse_response(self, connection, args[0], **options)

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in one round trip and return their bare answers, no transaction. Raises the first error among them.

        A script the server does not know is sent to it whole.
        """
        answers = self._ask(commands)
        unknown = [i for i, answer in enumerate(answers) if isinstance(answer, redis.exceptions.NoScriptError)]
        if unknown:
            for i, answer in zip(unknown, self._ask([taught(commands[i]) for i in unknown]), strict=True):
                answers[i] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def tell(self, commands: Sequence[Command]) -> None:
        """Send commands and do not wait for their answers, which are read before the client's next command.

        What the server refuses of them is counted, not raised.
        """
        pool: Any = self.connection_pool
        connection = pool.get_connection()
        connection.send_packed_command(connection.pack_commands(commands))
        pool.owed = len(commands)

    def _ask(self, commands: Sequence[Command]) -> list[Any]:
        connection = self.connection_pool.get_connection()
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            return [_answer(connection) for _ in commands]
        except BaseException:
            connection.disconnect()  # the answers that were not read must not be taken for those to the next command
            raise


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.exceptions.ResponseError as exc:
        return exc


class _Loan:
    """A client in the hands of one thread. A class, because a generator would cost a cache hit a microsecond more."""

    __slots__ = ("_client", "_probe", "_role")

    def __init__(self, role: Role) -> None:
        self._role = role

    def __enter__(self) -> Client:
        role = self._role
        self._probe = role.breaker.admit()
        try:
            self._client = role.idle.pop()
        except IndexError:
            self._client = role.client()
        return self._client

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        role = self._role
        if exc is None and not self._probe and len(role.idle) < IDLE:
            role.idle.append(self._client)
            return
        found = role.breaker.passed(self._probe, exc)
        if exc is not None and found is None:
            # The answer to an interrupted command must not be taken for that to the next one.
            self._client.connection_pool.disconnect()
        role.take_back(self._client)
        if found is not None:
            raise found from exc


class Role:
    """One Redis server in one role.

    Its clients never retry by themselves: a retried INCR or lock would take effect twice. Callers repeat what is harmless to
    repeat.
    """

    def __init__(self, name: str, url: str, timeout_s: float) -> None:
        self.name = name
        self.breaker = Breaker(name)
        #: Clients that nobody has borrowed.
        self.idle: list[Client] = []
        self._url, self._timeout_s = url, timeout_s
        self._turns: SimpleQueue[None] = SimpleQueue()
        for _ in range(ASKING):
            self._turns.put(None)

    def client(self) -> Client:
        """Return a new client, to be worked with inside `use`, which translates its errors."""
        pool = _OneConnection.from_url(
            self._url,
            socket_timeout=self._timeout_s,
            socket_connect_timeout=self._timeout_s,
            socket_keepalive=True,
            health_check_interval=15,
            retry=Retry(NoBackoff(), 0),
            client_name=f"holdfast-{self.name}",
        )
        return Client(connection_pool=pool)

    def take_back(self, client: Client) -> None:
        """Keep a client that was lent for the next borrower; what a rush has left beyond a few is closed."""
        if len(self.idle) < IDLE:
            self.idle.append(client)
        else:
            client.connection_pool.disconnect()

    def pubsub(self) -> redis.client.PubSub:
        """Return a subscriber with a connection of its own, to be worked with inside `use`, which translates its errors."""
        client: redis.Redis = self.client()
        subscriber: redis.client.PubSub = client.pubsub(ignore_subscribe_messages=True)
        return subscriber

    def close(self) -> None:
        """Close the connections that nobody has borrowed."""
        while self.idle:
            self.idle.pop().connection_pool.disconnect()

    @property
    def away(self) -> bool:
        """Tell whether the server failed a moment ago and is not tried for now."""
        return self.breaker.away

    def run_id(self) -> str:
        """Return what tells this run of the server from any other; empty where the server does not say. Raises as `use`."""
        try:
            with self.use() as client:
                return str(client.info("server").get("run_id", ""))[:8]
        except StoreRefused:
            return ""

    def use(self) -> _Loan:
        """Lend a client to one thread, for the length of a `with`.

        Raises `StoreFull` when the server is at its maxmemory, `StoreRefused` when it refuses the command, `StoreUnavailable`
        when it does not answer or did not a moment ago.
        """
        return _Loan(self)

    def tell(self, commands: Sequence[Command]) -> None:
        """Send commands and do not wait for their answers; raises as `use`.

        For what is harmless to lose: the server may still refuse it, or die with it, which is counted.
        """
        with _Loan(self) as client:
            if self.breaker.broken:  # Only an answer shows that a server that failed is back.
                client.ask(commands)
            else:
                client.tell(commands)

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in one round trip, as `Client.ask`; raises as `use`. Of many threads, `ASKING` do so at a time."""
        turn = self._turns.get()
        try:
            with _Loan(self) as client:
                return client.ask(commands)
        finally:
            self._turns.put(turn)


@lru_cache(maxsize=1)
def coordination() -> Role:
    """Return the server that holds broker and locks and must not evict."""
    conf = settings()
    return Role("coordination", conf.redis_url, conf.redis_timeout_s)


@lru_cache(maxsize=1)
def cache() -> Role:
    """Return the server that holds what Postgres can give again."""
    conf = settings()
    return Role("cache", conf.cache_url, conf.cache_timeout_ms / 1000)


@lru_cache(maxsize=1)
def limits() -> Role:
    """Return the coordination server for those who must decide at once, and by themselves where it does not answer."""
    conf = settings()
    return Role("limits", conf.redis_url, conf.limits_timeout_ms / 1000)


def _after_fork() -> None:
    coordination.cache_clear()
    limits.cache_clear()
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
