"""A gateway in a thread of this process, spoken to over real HTTP on the test's servers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests import sample_tasks as tasks
from tests.harness import eventually
from worker.app import app
from worker.db import statement
from worker.gateway import create_app
from worker.gateway.server import listen, make_server, serve
from worker.ledger import callers

ADD, ECHO = tasks.add.name, tasks.echo.name


def key_for(name: str, *scopes: str, **terms: Any) -> str:
    """Add a caller and return its key."""
    with statement() as conn:
        return callers.add(conn, name, scopes=scopes or ("enqueue", "read"), **terms)


class Door:
    """A gateway and a client with a key."""

    def __init__(self) -> None:
        app.finalize()
        self.app, self.gateway = create_app(app)
        self.socket = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = make_server(self.app, self.gateway, grace_s=5)
        self._thread = threading.Thread(target=serve, args=(self.server, self.socket), daemon=True)
        self._clients: list[httpx.Client] = []

    def start(self) -> Door:
        self._thread.start()
        eventually(lambda: self.server.started, what="the gateway serving")
        return self

    def client(self, key: str | None = None, **headers: str) -> httpx.Client:
        """Return a client that brings a key along, if one is given."""
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        made = httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False, verify=False)
        self._clients.append(made)
        return made

    def stop(self) -> None:
        self.server.should_exit = True
        for client in self._clients:
            client.close()
        self._thread.join(15)
        assert not self._thread.is_alive(), "the gateway goes on"


@pytest.fixture
def door(conf: Callable[..., None]) -> Iterator[Door]:
    """A gateway on the test's servers, which are given time: the machine may be busy."""
    conf(cache_timeout_ms=2000, limits_timeout_ms=2000)
    door = Door().start()
    yield door
    door.stop()


@pytest.fixture
def me(door: Door) -> httpx.Client:
    """A client that may enqueue and read."""
    return door.client(key_for("me"))


@pytest.fixture
def admin(door: Door) -> httpx.Client:
    """A client that may do everything."""
    return door.client(key_for("admin", "admin"))


def problem(answer: httpx.Response, status: int, code: str, field: str | None = None) -> dict[str, Any]:
    """Return the problem details of an answer, which must be whole, and these."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    told: dict[str, Any] = answer.json()
    assert (answer.status_code, told["status"], told["code"], told.get("field")) == (status, status, code, field), told
    assert told["title"]
    assert told["detail"]
    assert told["type"] == f"/problems/{code}"
    assert told["instance"] == f"urn:holdfast:request:{answer.headers['x-request-id']}"
    return told
