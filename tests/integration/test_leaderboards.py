"""Leaderboards: the right order, ties by who was first, bounded, gone in time, and the same again after a flush."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests.harness import eventually
from tests.integration.test_cli import Said
from tests.integration.test_cli import holdfast as holdfast
from worker.embedded import Stack
from worker.errors import InvalidLive, StoreUnavailable
from worker.ledger import boards
from worker.live import Board, Place, Score
from worker.tasks.boards import refresh

Conn = psycopg.Connection[Any]
NOON = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)  # a Wednesday


@pytest.fixture(autouse=True)
def _patient(conf: Callable[..., None]) -> None:
    conf(redis_timeout_s=10)


def at(seconds: float) -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(seconds=seconds)


def test_members_stand_by_value_and_ties_by_who_was_first(env: dict[str, str]) -> None:
    board = Board("b", "hour")
    board.set("zoe", 5, at=at(1))
    board.set("ann", 5, at=at(3))
    board.set("bob", 5, at=at(2))
    board.add("cid", 7, at=at(9))
    assert board.top(3) == [Place(1, "cid", 7), Place(2, "zoe", 5), Place(3, "bob", 5)]
    assert board.add("ann", at=at(8)) == 6
    assert [place.member for place in board.top()] == ["cid", "ann", "zoe", "bob"]


def test_each_way_to_score(env: dict[str, str]) -> None:
    board = Board("b", "hour")
    assert board.add("ann", 3, at=at(1)) == 3
    assert board.best("ann", 2, at=at(2)) == 3
    assert board.best("ann", 9, at=at(5)) == 9
    board.best("bob", 9, at=at(4))
    board.best("ann", 9, at=at(6))
    assert [place.member for place in board.top()] == ["bob", "ann"], "reached again is not reached sooner"
    board.best("ann", 9, at=at(3))
    assert [place.member for place in board.top()] == ["ann", "bob"], "told late is reached when it was"
    assert board.set("ann", 1, at=at(7)) == 1
    assert board.place("ann") == Place(2, "ann", 1)
    assert board.place("nobody") is None


def test_rank_comes_with_its_neighbours(env: dict[str, str]) -> None:
    board = Board("b", "all")
    for n in range(30):
        board.set(f"m{n:02}", n)
    assert [place.rank for place in board.around("m15", 2)] == [13, 14, 15, 16, 17]
    assert [place.member for place in board.around("m29", 2)] == ["m29", "m28", "m27"]
    assert [place.member for place in board.around("m00", 2)] == ["m02", "m01", "m00"]
    assert board.around("nobody") == []


def test_windows_begin_empty_and_go(env: dict[str, str], redis: Redis) -> None:
    for window, first, last, after in (
        ("hour", NOON, NOON + timedelta(minutes=59, seconds=59), NOON + timedelta(hours=1)),
        ("day", NOON.replace(hour=0), NOON.replace(hour=23), NOON.replace(hour=0) + timedelta(days=1)),
        ("week", datetime(2026, 11, 23, tzinfo=UTC), datetime(2026, 11, 29, 23, tzinfo=UTC), datetime(2026, 11, 30, tzinfo=UTC)),
    ):
        board = Board("b", window)  # type: ignore[arg-type]
        assert board.starts(last) == first
        assert board.starts(after) == after
    board = Board("b", "hour")
    board.add("ann")
    (key,) = redis.keys()  # type: ignore[misc]
    assert 3600_000 < redis.pttl(key) <= 7200_000  # type: ignore[operator]
    before = datetime.now(UTC) - timedelta(days=2)
    assert board.add("ann", at=before) == 0, "a window that is long over is not begun again"
    assert board.top(at=before) == []
    last_hour = datetime.now(UTC) - timedelta(hours=1)
    board.add("bob", 2, at=last_hour)
    assert [place.member for place in board.top(at=last_hour)] == ["bob"]


def test_board_holds_no_more_than_its_size(env: dict[str, str], redis: Redis) -> None:
    board = Board("b", "day", size=10)
    for n in range(50):
        board.set(f"m{n}", n)
    assert [place.value for place in board.top(50)] == list(range(49, 39, -1))
    board.rebuild([Score(f"m{n}", n, datetime.now(UTC)) for n in range(50)])
    assert [place.value for place in board.top(50)] == list(range(49, 39, -1))


@pytest.mark.parametrize("largest", [1, 1000, 2**31 - 1, 2**49 - 1])
@pytest.mark.parametrize("window", ["hour", "day", "week", "all"])
def test_value_is_exact_up_to_the_highest(env: dict[str, str], largest: int, window: Any) -> None:
    board = Board("b", window, largest=largest)
    values = sorted({0, 1, largest // 2, largest - 1, largest})
    for value in values:
        board.set(f"v{value}", value)
    assert [place.value for place in board.top(10)] == values[::-1]
    with pytest.raises(InvalidLive, match="above its highest"):
        board.add(f"v{largest}", 1)
    assert board.place(f"v{largest}") == Place(1, f"v{largest}", largest)


def test_rebuilt_board_is_the_same_to_the_last_tie(env: dict[str, str], redis: Redis) -> None:
    board, chance, start = Board("b", "day"), Random(3), datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    events = [(f"m{chance.randrange(400)}", chance.randrange(1, 4), start + timedelta(seconds=chance.random() * 3600))
              for _ in range(4000)]  # fmt: skip
    for member, value, moment in events:
        board.add(member, value, at=moment)
    (key,) = redis.keys()  # type: ignore[misc]
    stood = redis.zrange(key, 0, -1, withscores=True)
    scores = [
        Score(name, sum(v for m, v, _ in events if m == name), max(w for m, _, w in events if m == name))
        for name in {member for member, _, _ in events}
    ]
    redis.flushall()
    assert board.top() == []
    assert board.rebuild(scores) == len(scores)
    assert redis.zrange(key, 0, -1, withscores=True) == stood
    assert redis.pttl(key) > 0
    assert redis.keys() == [key], "nothing of the building is left"


def test_increments_from_many_threads_all_count(env: dict[str, str]) -> None:
    board = Board("b", "day")
    threads = [threading.Thread(target=lambda: [board.add("ann") for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert board.place("ann") == Place(1, "ann", 1600)


def test_readers_see_a_whole_board_while_it_is_rebuilt(env: dict[str, str]) -> None:
    board = Board("b", "day")
    scores = [Score(f"m{n}", 1, datetime.now(UTC)) for n in range(5000)]
    board.rebuild(scores)
    seen: set[int] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.add(len(board.top(6000)))

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(5):
        board.rebuild(scores)
    eventually(lambda: seen)
    stop.set()
    reader.join()
    assert seen == {5000}


def test_without_redis_it_is_told(env: dict[str, str], stack: Stack) -> None:
    stack.redis.kill()
    with pytest.raises(StoreUnavailable):
        Board("b").add("ann")
    with pytest.raises(StoreUnavailable):
        Board("b").rebuild([Score("ann", 1, NOON)])


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda: Board(""), "not a name"), (lambda: Board("b", "month"), "window: 'month' is none of hour"),  # type: ignore[arg-type]
        (lambda: Board("b", largest=2**50), "largest"), (lambda: Board("b", size=0), "size: 0"),
        (lambda: Board("b").add("", 1), "member: ''"), (lambda: Board("b").add("a", -1), "value: -1"),
        (lambda: Board("b").set("a", 1.5), "value: 1.5"), (lambda: Board("b").top(0), "0 members"),  # type: ignore[arg-type]
        (lambda: Board("b").add("\ud800"), "half a character"),
    ],
)  # fmt: skip
def test_bad_input_is_named(env: dict[str, str], work: Callable[[], object], told: str) -> None:
    with pytest.raises(InvalidLive, match=told):
        work()


# ---- put to use

_ENDED = """
INSERT INTO job_history (id, task, queue, state, message, caller, claimed_at, finished_at)
VALUES (gen_random_uuid()::text, %s, 'default', %s, '{}', %s,
        clock_timestamp() - %s * interval '1 ms', clock_timestamp())
"""
_SPENT = """
INSERT INTO usage (reservation_id, root, subject, requests, tokens_in, tokens_out, micros, reserved_at)
VALUES (gen_random_uuid()::text, 'org:a', %s, 1, 0, 0, %s, clock_timestamp())
"""


@pytest.fixture
def record(db: Conn) -> Conn:
    """A record of jobs and spends."""
    for task, state, caller, ms in (
        ("fast", "succeeded", "acme", 10), ("slow", "succeeded", "acme", 5000), ("fast", "failed", "bank", 20),
        ("slow", "discarded", None, 60), ("slow", "failed", "acme", 70), ("odd", "succeeded", "", -50),
    ):  # fmt: skip
        db.execute(_ENDED, (task, state, caller, ms))
    db.execute("UPDATE job_history SET claimed_at = 'infinity' WHERE task = 'odd'")
    for subject, micros in (("org:a/user:1", 500), ("org:a/user:2", 900), ("org:a/user:1", 600), ("org:a", 0)):
        db.execute(_SPENT, (subject, micros))
    return db


def test_boards_are_built_from_the_record_and_the_same_after_a_flush(record: Conn, redis: Redis) -> None:
    if datetime.now(UTC).minute == 59 and datetime.now(UTC).second > 40:
        time.sleep(25)  # the hour is about to end
    held = refresh()
    assert held == {f"{name}:{window}": {"callers": 2, "slow": 2, "failing": 2, "spenders": 2}[name]
                    for window in boards.WINDOWS for name in boards.BOARDS}  # fmt: skip
    assert boards.top(record, "callers") == [Place(1, "acme", 3), Place(2, "bank", 1)]
    assert [place.member for place in boards.top(record, "slow")] == ["slow", "fast"]
    assert 5000 <= boards.top(record, "slow")[0].value < 5200
    assert boards.top(record, "failing", "week") == [Place(1, "slow", 2), Place(2, "fast", 1)]
    assert boards.top(record, "spenders", "hour") == [Place(1, "org:a/user:1", 1100), Place(2, "org:a/user:2", 900)]
    stood = {key: redis.zrange(key, 0, -1, withscores=True) for key in redis.scan_iter("holdfast:board:*")}
    redis.flushall()
    refresh()
    assert {key: redis.zrange(key, 0, -1, withscores=True) for key in redis.scan_iter("holdfast:board:*")} == stood
    assert len(stood) == 12


def test_top_is_listed_also_right_after_a_flush(holdfast: Callable[..., Said], record: Conn) -> None:
    assert holdfast("top", "callers", "--json").document == [
        {"rank": 1, "member": "acme", "value": 3}, {"rank": 2, "member": "bank", "value": 1},
    ]  # fmt: skip
    assert "jobs that failed" in holdfast("top", "failing", "--window", "week").out
    for line, told in ((("best",), "'best' is none of the boards callers"), (("slow", "--window", "year"), "'year' is none of")):
        said = holdfast("top", *line)
        assert (said.code, said.out) == (2, "")
        assert told in said.err
