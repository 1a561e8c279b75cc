"""Redlock over five servers: majorities, servers away, the arithmetic of its validity."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis

from tests.harness import eventually
from worker.embedded import RedisServer
from worker.errors import InvalidLock, LockBusy, LockLost, LockReentered, StoreUnavailable
from worker.locks import HeldRedlock, Redlock, redlock
from worker.locks import held as held_locks
from worker.store import keys

KEY = keys.redlock("a")


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    """Five servers that know nothing of each other."""
    servers = []
    for n in range(5):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder = tmp_path_factory.mktemp(f"server{n}") / "redis"
        folder.mkdir()
        servers.append(RedisServer(folder, port, "secret"))
    yield servers
    for server in servers:
        server.thaw()
        server.stop()


@pytest.fixture
def urls(five: list[RedisServer], env: dict[str, str]) -> Iterator[list[str]]:
    """Their addresses, all running and empty."""
    for server in five:
        server.thaw()
        server.start()
        with Redis.from_url(server.url) as client:
            client.flushall()
    redlock._roles.cache_clear()  # and with them what they remember of servers that were away
    yield [server.url for server in five]
    held_locks._thread.holds.clear()


def holders(urls: list[str]) -> int:
    found = 0
    for url in urls:
        with Redis.from_url(url, socket_timeout=0.2) as client:
            try:
                found += client.exists(KEY)  # type: ignore[operator]
            except Exception:
                continue
    return found


def other(urls: list[str], ttl_s: float = 20.0) -> HeldRedlock | None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(Redlock("a", ttl_s, urls).try_acquire()))
    thread.start()
    thread.join(20)
    return found[0]  # type: ignore[no-any-return]


def test_lock_is_held_by_one_on_all_servers_and_leaves_nothing(urls: list[str]) -> None:
    with Redlock("a", 20, urls).acquire() as held:
        assert holders(urls) == 5
        assert other(urls) is None
        with pytest.raises(LockReentered):
            Redlock("a", 20, urls).acquire(5)
        with Redis.from_url(urls[0]) as client:
            assert 0 < client.pttl(KEY) <= 20_000
        assert not held.lost.is_set()
    assert holders(urls) == 0


def test_refused_lock_leaves_no_lease_on_the_servers_that_gave_one(urls: list[str]) -> None:
    for url in urls[:3]:
        with Redis.from_url(url) as client:
            client.set(KEY, "another", px=20_000)
    assert other(urls) is None
    assert holders(urls) == 3
    with pytest.raises(LockBusy):
        Redlock("a", 20, urls).acquire(0.3)


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_minority_that_is_away_does_not_matter_and_a_majority_does(urls: list[str], five: list[RedisServer], how: str) -> None:
    for server in five[:2]:
        getattr(server, how)()
    with Redlock("a", 20, urls).acquire(5) as held:
        assert holders(urls) == 3
        assert other(urls) is None
        assert not held.lost.is_set()
    getattr(five[2], how)()
    with pytest.raises(StoreUnavailable, match="3 of the 5"):
        Redlock("a", 20, urls).acquire(0.5)
    assert holders(urls[3:]) == 0


def test_time_spent_asking_counts_against_the_lease(urls: list[str], five: list[RedisServer]) -> None:
    five[0].freeze()
    five[1].freeze()
    assert Redlock("a", 0.06, urls).try_acquire() is None, "most of the leases were over when the last was given"
    five[0].thaw()
    five[1].thaw()
    assert eventually(lambda: other(urls), 10)


def test_loss_of_the_majority_is_told_and_that_of_a_minority_is_not(urls: list[str]) -> None:
    with pytest.raises(LockLost, match="most of"), Redlock("a", 1.0, urls).acquire() as held:  # noqa: PT012
        for url in urls[:2]:
            with Redis.from_url(url) as client:
                client.flushall()
        assert not held.lost.wait(1.5)
        with Redis.from_url(urls[2]) as client:
            client.flushall()
        assert held.lost.wait(5)


def test_hung_majority_is_a_loss_when_its_leases_are_over(urls: list[str], five: list[RedisServer]) -> None:
    held = Redlock("a", 1.0, urls).acquire()
    for server in five[:3]:
        server.freeze()
    started = time.monotonic()
    assert held.lost.wait(10)
    assert time.monotonic() - started <= 1.2
    assert held.release() is False


def test_waiter_gets_the_lock_after_the_holder(urls: list[str]) -> None:
    found: list[HeldRedlock] = []
    with Redlock("a", 20, urls).acquire():
        thread = threading.Thread(target=lambda: found.append(Redlock("a", 20, urls).acquire(20)))
        thread.start()
        time.sleep(0.2)
        assert not found
    thread.join(20)
    assert found[0].release()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Redlock("a", 1), "servers: 0 different of 0"),
        (lambda: Redlock("a", 1, ["redis://a", "redis://b"]), "2 different of 2"),
        (lambda: Redlock("a", 1, ["redis://a", "redis://b", "redis://a"]), "2 different of 3"),
        (lambda: Redlock("a", 0, ["redis://a", "redis://b", "redis://c"]), "ttl_s: 0"),
        (lambda: Redlock("", 1, ["redis://a", "redis://b", "redis://c"]), "name: ''"),
    ],
)
def test_bad_input_is_one_clear_error(env: dict[str, str], make: Callable[[], Any], told: str) -> None:
    with pytest.raises(InvalidLock, match=told):
        make()


def test_servers_come_from_the_settings(urls: list[str], conf: Callable[..., None]) -> None:
    conf(redlock_urls=",".join(urls))
    with Redlock("a", 20).acquire():
        assert holders(urls) == 5
