"""The lease and its Lua, on the server of the stack and on the oldest one promised."""

from __future__ import annotations

import time

import pytest
from redis import Redis

from tests.harness import eventually
from worker import locks
from worker.embedded import RedisServer
from worker.errors import StoreFull, StoreRefused, StoreUnavailable
from worker.store import coordination, keys, script


def test_lease_is_taken_once_and_again_by_its_own_token(server: RedisServer) -> None:
    assert locks.try_acquire("k", "a", 5000)
    assert locks.try_acquire("k", "b", 5000) is None
    assert locks.try_acquire("k", "a", 5000), "a repeat after a lost answer must know its own token"


def test_lease_is_not_released_by_another_holder(server: RedisServer) -> None:
    locks.try_acquire("k", "a", 5000)
    locks.release("k", "b")
    assert locks.try_acquire("k", "b", 5000) is None
    locks.release("k", "a")
    assert locks.try_acquire("k", "b", 5000)


def test_lease_has_a_time_to_live_and_runs_out(server: RedisServer) -> None:
    locks.try_acquire("k", "a", 200)
    with Redis.from_url(server.url) as client:
        assert 0 < client.pttl("k") <= 200
    assert eventually(lambda: locks.try_acquire("k", "b", 5000), 2)


def test_keeper_renews_a_lease_until_it_is_removed(server: RedisServer) -> None:
    lease = locks.try_acquire("k", "a", 1500)
    assert lease
    keeper = locks.keeper()
    keeper.add(lease)
    until = time.monotonic() + 2
    while time.monotonic() < until:
        assert locks.try_acquire("k", "b", 5000) is None, "a kept lease ran out"
        time.sleep(0.05)
    keeper.remove(lease)
    assert eventually(lambda: locks.try_acquire("k", "b", 5000), 5)


def test_renewing_does_not_bring_back_a_lease_that_is_gone(server: RedisServer) -> None:
    with coordination().use() as client:
        assert script("lease_renew")(client, ["k"], ["a", 5000]) == 0
        assert client.exists("k") == 0


def test_script_is_taught_again_after_the_server_forgot_it(server: RedisServer) -> None:
    locks.try_acquire("k", "a", 5000)
    locks.release("k", "a")
    with Redis.from_url(server.url) as client:
        client.script_flush()
    locks.try_acquire("k", "a", 5000)
    locks.release("k", "a")
    assert locks.try_acquire("k", "b", 5000)


def test_frozen_server_is_given_up_after_its_timeout_and_spared_for_a_while(server: RedisServer) -> None:
    server.freeze()
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        locks.try_acquire("k", "a", 5000)
    first = time.monotonic() - started
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        locks.try_acquire("k", "a", 5000)
    assert first >= 0.9, "it was given up before its timeout"
    assert time.monotonic() - started < 0.1, "a server that just failed cost a second timeout"
    server.thaw()
    assert eventually(lambda: locks.try_acquire("k", "a", 5000), 5)


def test_full_server_refuses_with_the_reason(server: RedisServer) -> None:
    with Redis.from_url(server.url) as client:
        client.config_set("maxmemory", "1")
        try:
            with pytest.raises(StoreFull, match="maxmemory"):
                locks.try_acquire("k", "a", 5000)
        finally:
            client.config_set("maxmemory", "0")


def test_refused_command_is_told_apart_from_an_outage(server: RedisServer) -> None:
    with Redis.from_url(server.url) as client:
        client.lpush(keys.job_lock("x"), "not a string")
    with pytest.raises(StoreRefused, match="WRONGTYPE"):
        locks.try_acquire(keys.job_lock("x"), "a", 5000)
    assert not coordination().away
