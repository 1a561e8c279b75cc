"""What is told to Redis without waiting for an answer, and what that leaves for whoever asks next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from worker.errors import StoreUnavailable
from worker.store.client import Role
from worker.telemetry import OUTAGES

LOST = OUTAGES.labels("told", "lost")


@pytest.fixture
def role(env: dict[str, str]) -> Iterator[Role]:
    role = Role("cache", env["CACHE_URL"], 0.5)
    yield role
    role.close()


def lost() -> float:
    return LOST._value.get()  # type: ignore[no-any-return,attr-defined]


def test_what_is_told_takes_effect_and_the_next_command_gets_its_own_answer(role: Role) -> None:
    role.tell([("SET", "told", "yes", "PX", 60_000), ("PUBLISH", "told", "yes")])
    assert role.ask([("GET", "told"), ("PTTL", "nothing")]) == [b"yes", -2]
    with role.use() as client:
        assert client.get("told") == b"yes"


def test_a_refusal_of_what_is_told_is_counted_and_disturbs_nobody(role: Role) -> None:
    before = lost()
    role.tell([("SET", "text", "a", "PX", 60_000), ("INCR", "text"), ("LPUSH", "text", "b")])
    assert role.ask([("GET", "text")]) == [b"a"]
    assert lost() == before + 2


def test_a_connection_that_was_cut_after_telling_is_made_anew_unseen(role: Role, cache: Redis) -> None:
    role.tell([("SET", "cut", "a", "PX", 60_000)])
    before = lost()
    cache.client_kill_filter(_type="normal", skipme=True)
    assert role.ask([("PTTL", "nothing")]) == [-2]
    assert lost() <= before + 1


def test_telling_a_server_that_is_away_says_so_and_only_an_answer_shows_its_return(env: dict[str, str]) -> None:
    gone = Role("cache", "redis://127.0.0.1:1", 0.5)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            gone.tell([("SET", "a", "b", "PX", 1000)])
    assert gone.away
