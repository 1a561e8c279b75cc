"""Sessions: who is logged in stays so, who is logged out too, whatever is under way at the time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from random import Random

import pytest
from redis import Redis

from tests.harness import eventually
from worker.embedded import Stack
from worker.errors import InvalidLive, SessionConflict, SessionGone, StoreUnavailable
from worker.live import Sessions
from worker.live.sessions import MOST_SESSIONS, csrf_token, digest_of, is_csrf_token
from worker.store import keys
from worker.telemetry import OUTAGES

RACES = 10_000


@pytest.fixture
def sessions(conf: Callable[..., None]) -> Sessions:
    conf(redis_timeout_s=10)  # what is tested here are not deadlines
    return Sessions()


def test_session_is_kept_under_a_digest_and_read_back(sessions: Sessions, redis: Redis) -> None:
    session = sessions.open("ann", {"theme": "dark"}, about="Firefox")
    found = sessions.read(session.id)
    assert found is not None
    assert (found.user, found.data, found.version, found.about) == ("ann", {"theme": "dark"}, 1, "Firefox")
    assert len(session.id) == 22, "128 bits in base64"
    kept = [part for key in redis.scan_iter() if redis.type(key) == b"hash" for part in (key, *redis.hgetall(key).values())]
    assert session.id.encode() not in b" ".join(kept), "an id cannot be read from the server"


@pytest.mark.parametrize("text", ["", "x", "*" * 22, "a" * 23, "ü" * 22, "a" * 21 + "\n"])
def test_what_is_no_id_is_nobodys(sessions: Sessions, text: str) -> None:
    assert sessions.read(text) is None


def test_every_key_has_a_life(sessions: Sessions, redis: Redis) -> None:
    kept, ended = sessions.open("ann"), sessions.open("ann")
    rotated = sessions.rotate(sessions.open(), "bob")
    sessions.end(ended.id)
    assert kept.id != rotated.id
    assert all(0 < redis.pttl(key) <= 12 * 3600 * 1000 for key in redis.scan_iter())


def test_idle_life_slides_and_the_absolute_one_does_not(env: dict[str, str]) -> None:
    sessions = Sessions(idle=timedelta(seconds=1), absolute=timedelta(seconds=2.5))
    used, left = sessions.open("ann"), sessions.open("ann")
    began = time.monotonic()
    while sessions.read(used.id) is not None:
        assert time.monotonic() - began < 10
        time.sleep(0.3)
    assert time.monotonic() - began > 1.9, "it lived on while it was used"
    assert sessions.read(left.id) is None
    with pytest.raises(SessionGone):
        sessions.write(used)


def test_write_that_was_overtaken_is_refused(sessions: Sessions) -> None:
    mine = sessions.open("ann", {"n": 0})
    theirs = sessions.read(mine.id)
    assert theirs is not None
    theirs.data["n"] = 1
    sessions.write(theirs)
    mine.data["n"] = 2
    with pytest.raises(SessionConflict) as caught:
        sessions.write(mine)
    assert caught.value.version == 2
    with pytest.raises(SessionConflict):
        sessions.rotate(mine)
    found = sessions.read(mine.id)
    assert found is not None
    assert found.data == {"n": 1}


def test_login_changes_the_id_and_the_old_one_is_nobodys(sessions: Sessions) -> None:
    planted = sessions.open(data={"basket": [7]})
    session = sessions.rotate(planted, "ann")
    assert sessions.read(planted.id) is None
    found = sessions.read(session.id)
    assert found is not None
    assert (found.user, found.data) == ("ann", {"basket": [7]})
    with pytest.raises(SessionGone):
        sessions.rotate(planted, "eve")


def test_rotation_without_a_login_keeps_the_end(sessions: Sessions) -> None:
    first = sessions.open("ann")
    time.sleep(0.05)
    second = sessions.rotate(first)
    assert (second.user, second.ends) == ("ann", first.ends)
    assert sessions.rotate(second, "ann").ends > first.ends


def test_logout_with_an_old_id_ends_what_took_its_place(sessions: Sessions) -> None:
    first = sessions.open("ann")
    second = sessions.rotate(first)
    third = sessions.rotate(second)
    assert sessions.end(first.id)
    assert sessions.read(third.id) is None
    assert not sessions.end(first.id)


def test_logout_of_an_unknown_id_leaves_nothing_behind(sessions: Sessions, redis: Redis) -> None:
    assert not sessions.end("a" * 22)
    assert redis.dbsize() == 0


def test_users_sessions_are_listed_and_ended(sessions: Sessions) -> None:
    first, second, third = (sessions.open("ann", about=about) for about in ("one", "two", "three"))
    other = sessions.open("bob")
    assert sorted(one.about for one in sessions.of_user("ann")) == ["one", "three", "two"]
    handle = next(one.handle for one in sessions.of_user("ann") if one.about == "two")
    assert not sessions.end_one("bob", handle), "it is not his"
    assert sessions.end_one("ann", handle)
    assert sessions.end_all("ann", but=third.id) == 1
    assert [one.about for one in sessions.of_user("ann")] == ["three"]
    assert [sessions.read(one.id) is None for one in (first, second, third, other)] == [True, True, False, False]
    assert sessions.end_all("ann") == 1
    assert sessions.of_user("ann") == []


def test_one_session_too_many_ends_the_oldest(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.live.sessions.MOST_SESSIONS", 3)
    assert MOST_SESSIONS == 1000
    opened = []
    for _ in range(5):
        opened.append(sessions.open("ann"))
        time.sleep(0.003)  # so that one is older than the next
    assert [sessions.read(one.id) is not None for one in opened] == [False, False, True, True, True]
    assert len(sessions.of_user("ann")) == 3


def test_no_write_rotation_or_login_brings_a_session_back_that_is_logged_out(sessions: Sessions) -> None:
    """Ten thousand races between a logout and a request in flight, by every way the request can go."""
    chance = Random(7)
    ways = ["write", "rotate", "login", "end_all"]
    races = [(sessions.open("ann"), way) for way in chance.choices(ways, weights=[70, 15, 10, 5], k=RACES)]
    alive: list[str] = []
    barrier = threading.Barrier(2)
    successors: dict[str, str] = {}

    def requests() -> None:
        for session, way in races:
            barrier.wait()
            try:
                if way == "write" or way == "end_all":
                    session.data["n"] = 1
                    sessions.write(session)
                else:
                    successors[session.id] = sessions.rotate(session, "ann" if way == "login" else None).id
            except (SessionGone, SessionConflict):
                pass
            barrier.wait()

    def logouts() -> None:
        for number, (session, way) in enumerate(races):
            barrier.wait()
            if number % 2 and way in ("rotate", "login"):
                time.sleep(0.001)  # a scheduler may let the same thread go first each time: half of the successors come first
            sessions.end(session.id)
            barrier.wait()
            alive.extend(one for one in (session.id, successors.get(session.id, "")) if sessions.read(one) is not None)

    threads = [threading.Thread(target=of) for of in (requests, logouts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alive == []
    assert successors, "some rotations came first, and their successors were ended with them"
    assert sessions.of_user("ann") == []


def test_ending_all_ends_what_is_rotated_meanwhile(sessions: Sessions) -> None:
    for _ in range(60):
        session = sessions.open("ann")
        done: list[str] = []

        def rotate(session: object = session, done: list[str] = done) -> None:
            try:
                done.append(sessions.rotate(session).id)  # type: ignore[arg-type]
            except SessionGone:
                pass

        thread = threading.Thread(target=rotate)
        thread.start()
        sessions.end_all("ann")
        thread.join()
        assert all(sessions.read(one) is None for one in [session.id, *done])


def test_token_belongs_to_its_session(sessions: Sessions) -> None:
    one, other = sessions.open("ann"), sessions.open("ann")
    assert is_csrf_token(one.id, one.csrf_token)
    assert not is_csrf_token(one.id, other.csrf_token)
    assert not is_csrf_token(one.id, "ü")
    assert csrf_token(one.id) != one.id


def test_without_redis_nobody_is_logged_in_and_it_is_counted(sessions: Sessions, stack: Stack) -> None:
    session = sessions.open("ann")
    before = OUTAGES.labels("session", "closed")._value.get()
    stack.redis.kill()
    with pytest.raises(StoreUnavailable):
        sessions.read(session.id)
    assert OUTAGES.labels("session", "closed")._value.get() == before + 1
    stack.redis.start()
    eventually(lambda: sessions.read(session.id) is not None, what="the session is there again from the append-only file")


def test_flush_logs_everybody_out_and_a_write_brings_nobody_back(sessions: Sessions, redis: Redis) -> None:
    session = sessions.open("ann")
    redis.flushall()
    with pytest.raises(SessionGone):
        sessions.write(session)
    assert redis.exists(keys.session(digest_of(session.id))) == 0


def test_tasks_of_an_event_loop_do_the_same(sessions: Sessions) -> None:
    async def work() -> None:
        session = await sessions.aio.rotate(await sessions.aio.open(data={"n": 1}), "ann")
        session.data["n"] = 2
        await sessions.aio.write(session)
        found = await sessions.aio.read(session.id)
        assert found is not None
        assert (found.data, found.version) == ({"n": 2}, 2)
        assert len(await sessions.aio.of_user("ann")) == 1
        assert await sessions.aio.end_one("ann", digest_of(session.id))
        assert not await sessions.aio.end(session.id)
        assert await sessions.aio.end_all("ann") == 0

    asyncio.run(work())


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda s: s.open("ann", {"x": object()}), "data: it is not JSON"), (lambda s: s.open("", {}), "user: ''"),
        (lambda s: s.open("ann", {"x": "y" * 70_000}), "data: 70008 bytes"), (lambda s: s.open("x" * 256), "1 to 255"),
        (lambda s: Sessions(idle=timedelta(hours=2), absolute=timedelta(hours=1)), "idle, absolute: 2:00:00"),
    ],
)  # fmt: skip
def test_bad_input_is_named(sessions: Sessions, work: Callable[[Sessions], object], told: str) -> None:
    with pytest.raises(InvalidLive, match=told):
        work(sessions)
