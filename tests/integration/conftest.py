"""Fixtures for tests that run everything in this process: settings of their own, SQL, a relay, and a worker without a process."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery.app.trace import trace_task
from kombu.utils.json import loads
from redis import Redis

from tests import harness
from tests import sample_tasks as tasks
from tests.harness import eventually
from worker import faults
from worker.app import app
from worker.embedded import RedisServer, Stack
from worker.engine.node import Node
from worker.engine.relay import Relay
from worker.store import keys


@pytest.fixture
def conf(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set settings for this test: `conf(window=10)`."""

    def put(**values: object) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"HOLDFAST_{name.upper()}", str(value))
        harness.forget()

    return put


@pytest.fixture
def db(env: dict[str, str]) -> Iterator[psycopg.Connection[Any]]:
    """An own connection to the test's database, in autocommit mode."""
    with psycopg.connect(env["DATABASE_URL"], autocommit=True) as conn:
        yield conn


@pytest.fixture
def relay(env: dict[str, str]) -> Relay:
    """A relay that works when told: `relay.round()`."""
    app.finalize()
    assert tasks.add.name in app.tasks
    return Relay(app)


@pytest.fixture
def fault() -> Iterator[Callable[[str], None]]:
    """Arm fault points in this process: `fault("after-commit:raise")`."""
    yield faults.arm
    faults.arm("")


class Bench:
    """A worker without a process: takes messages out of Redis and runs them, here and now, by Celery's own tracer."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.node = Node("bench", ["default"], set, app.backend.crash)
        self.node.register()

    def waiting(self, queue: str = "default") -> list[dict[str, Any]]:
        """Return the messages in a queue, the one served first first."""
        lists = (self.redis.lrange(key, 0, -1) for key in keys.queue_lists(queue))
        return [loads(raw) for found in lists for raw in reversed(found)]  # type: ignore[arg-type]

    def ids(self, queue: str = "default") -> list[str]:
        """Return the ids of the jobs whose messages are in a queue, the one served first first."""
        return [message["headers"]["id"] for message in self.waiting(queue)]

    def take(self, queue: str = "default") -> dict[str, Any] | None:
        """Take the message out that is served next."""
        for key in keys.queue_lists(queue):
            if (raw := self.redis.rpop(key)) is not None:
                return loads(raw)  # type: ignore[no-any-return,arg-type]
        return None

    def run(self, message: dict[str, Any]) -> None:
        """Run one message."""
        headers = message["headers"]
        args, kwargs, embed = loads(message["body"])
        request = {**headers, "args": args, "kwargs": kwargs, **embed, "properties": message["properties"],
                   "delivery_info": message["properties"]["delivery_info"], "is_eager": False, "hostname": "bench"}  # fmt: skip
        trace_task(app.tasks[headers["task"]], headers["id"], args, kwargs, request, app=app)

    def work(self, queue: str = "default", *, most: int = 1000) -> list[str]:
        """Run what lies in the queue until it is empty and return the ids in order."""
        ran: list[str] = []
        while len(ran) < most and (message := self.take(queue)) is not None:
            self.run(message)
            ran.append(message["headers"]["id"])
        return ran


@pytest.fixture
def bench(env: dict[str, str], redis: Redis) -> Bench:
    """A worker without a process, known to the fleet."""
    return Bench(redis)


# ---- other servers


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def redis_of(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *variables: str) -> Iterator[RedisServer]:
    """Lend a server of one of the programs there are here, to which these variables point."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "redis-server").symlink_to(harness.redis_programs()[name])
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    (tmp_path / "redis").mkdir()
    found = RedisServer(tmp_path / "redis", free_port(), "secret")
    found.start()
    for variable in variables:
        monkeypatch.setenv(variable, found.url)
    harness.forget()
    yield found
    found.thaw()
    found.stop()


@pytest.fixture(params=["stack", *harness.redis_programs()])
def server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> Iterator[RedisServer]:
    """The coordination server, of every kind there is here."""
    if request.param == "stack":
        yield request.getfixturevalue("stack").redis
        return
    with redis_of(request.param, tmp_path, monkeypatch, "REDIS_URL") as found:
        yield found


@pytest.fixture
def replica(stack: Stack, tmp_path: Path) -> Iterator[RedisServer]:
    """A second server that copies the first until it is told to stop."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", free_port(), stack.redis.password)
    server.start()
    process = server.process()  # asked now: once it has the other's address, it looks like the other
    assert process
    with Redis.from_url(server.url) as client:
        client.config_set("masterauth", stack.redis.password)
        client.replicaof("127.0.0.1", stack.redis.port)
        eventually(lambda: client.info("replication")["master_link_status"] == "up", 20)
    yield server
    process.kill()
    process.wait(10)


def promoted_on(port: int, replica: RedisServer) -> Callable[[], None]:
    """Cut the copy off and return what puts it in the place of the first, at its address."""
    client = Redis.from_url(replica.url)
    client.replicaof("NO", "ONE")

    def fail_over() -> None:
        eventually(lambda: client.config_set("port", port), 10)
        client.close()

    return fail_over
