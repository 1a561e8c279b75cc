"""`holdfast locks`: what it shows, what it breaks, how it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from tests.harness import eventually
from tests.integration.test_cli import Said, holdfast  # noqa: F401 - a fixture
from worker.embedded import Stack
from worker.locks import AdvisoryLock, Lock, Semaphore
from worker.locks import held as held_locks
from worker.store import keys

Run = Callable[..., Said]


@pytest.fixture(autouse=True)
def _fresh(env: dict[str, str]) -> Iterator[None]:
    yield
    held_locks._thread.holds.clear()


def test_ls_lists_who_holds_what(holdfast: Run, redis: Redis) -> None:  # noqa: F811
    assert holdfast("locks", "ls", "--json").document == []
    held, permit = Lock("report:7", 30, holder="clerk").acquire(), Semaphore("gpu", 2, 30).acquire()
    redis.set(keys.job_lock("some-id"), "token", px=10_000)
    lock, semaphore = holdfast("locks", "ls", "--json").document
    assert (lock["name"], lock["holder"], lock["fence"], lock["waiting"]) == ("report:7", "clerk", held.fence, 0)
    assert 0 < lock["left_s"] <= 30
    assert semaphore["name"] == "gpu"
    said = holdfast("locks", "ls")
    assert "report:7" in said.out
    assert "some-id" not in said.out
    assert "some-id" in holdfast("locks", "ls", "--jobs").out
    held.release()
    permit.release()


def test_show_tells_holder_waiters_and_transactions(holdfast: Run, redis: Redis) -> None:  # noqa: F811
    nobody = holdfast("locks", "show", "a")
    assert (nobody.code, nobody.out) == (1, "")
    assert "nobody holds 'a'" in nobody.err
    with Lock("a", 30, holder="clerk").acquire(), AdvisoryLock("a").hold():
        waiting = threading.Thread(target=lambda: Lock("a", 30, holder="next").acquire(30).release())
        waiting.start()
        eventually(lambda: redis.llen(keys.waiters(keys.lock("a"))), 10)
        found = holdfast("locks", "show", "a", "--json").document
        assert [holder["holder"] for holder in found["holders"]] == ["clerk"]
        assert found["waiting"] == ["next"]
        assert [row["granted"] for row in found["in_postgres"]] == [True]
        said = holdfast("locks", "show", "a")
        assert said.code == 0
        assert all(word in said.out for word in ("clerk", "next", "holdfast"))
    waiting.join(10)


def test_break_takes_it_away_and_says_when_there_is_nothing_to_take(holdfast: Run) -> None:  # noqa: F811
    held = Lock("a", 3).acquire()
    assert holdfast("locks", "break", "a") == (0, "broken: a\n", "")
    assert held.lost.wait(5)
    again = holdfast("locks", "break", "a")
    assert (again.code, again.out) == (1, "")
    assert "nobody holds 'a' in Redis" in again.err


def test_failures_end_with_their_codes(holdfast: Run, stack: Stack) -> None:  # noqa: F811
    assert holdfast("locks", "show", "").code == 2
    stack.redis.kill()
    assert holdfast("locks", "ls").code == 4
    assert holdfast("locks", "break", "a").code == 4
