"""Presence: who is shown on-line is there, who has died is not, and everybody hears of it once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests.harness import ROOT, eventually
from tests.integration.test_cli import Said
from tests.integration.test_cli import holdfast as holdfast
from tests.sample_tasks import add
from worker.embedded import Stack
from worker.engine.node import FLEET, Node
from worker.errors import InvalidLive, JobNotFound, StoreUnavailable
from worker.ledger import notes
from worker.live import Diff, Presence, Typing, Watch
from worker.live.presence import LIFE_BEATS
from worker.store import keys
from worker.telemetry import OUTAGES


@pytest.fixture(autouse=True)
def _patient(conf: Callable[..., None]) -> None:
    conf(redis_timeout_s=10)


@pytest.fixture
def place() -> Presence:
    return Presence("room", beat_s=1.0)


@pytest.fixture
def watch(place: Presence) -> Iterator[Watch]:
    """Hears who comes and goes; the list at its begin, of nobody, is taken."""
    with place.watch() as watch:
        assert watch.next(10) == Diff([], [], whole=True)
        yield watch


def test_member_is_there_as_long_as_one_of_its_devices_is(place: Presence, watch: Watch) -> None:
    place.beat("ann", "phone")
    assert watch.next(10) == Diff(["ann"], [])
    place.beat("ann", "desk")
    place.beat("ann", "desk")
    place.beat("bob")
    assert watch.next(10) == Diff(["bob"], []), "a second device is no news"
    assert place.online() == {"ann": ["desk", "phone"], "bob": [""]}
    place.leave("ann", "phone")
    place.leave("ann", "desk")
    assert watch.next(10) == Diff([], ["ann"])
    place.leave("ann", "desk")
    place.beat("cid")
    assert watch.next(10) == Diff(["cid"], []), "who has left does not leave again"


def test_silent_one_is_off_the_list_within_two_heartbeats_and_it_is_told(place: Presence, watch: Watch) -> None:
    place.beat("ann")
    died = time.monotonic()
    watch.next(10)
    gone = eventually(lambda: not place.online() and time.monotonic() - died, timeout=10, every=0.01)
    assert 1.0 < gone < 2.0 + 1.0, "not before it was late; the second is this machine's"
    assert watch.next(10) == Diff([], ["ann"])


def test_who_is_a_little_late_each_time_is_never_off_the_list() -> None:
    quick, kept = Presence("quick", beat_s=2.0), 0
    for _ in range(2):
        last = time.monotonic()
        quick.beat("ann")
        time.sleep(2.5)
        shown = quick.online()
        if time.monotonic() - last < quick.life_s:  # or this machine stood still for longer than anybody is waited for
            assert shown == {"ann": [""]}
            kept += 1
    assert kept


def test_ten_thousand_members_of_which_a_tenth_dies_in_silence(redis: Redis) -> None:
    place = Presence("crowd", beat_s=3.0)
    crowd = [(f"member-{n}", "") for n in range(10_000)]
    living = [pair for n, pair in enumerate(crowd) if n % 10]
    place.beat_all(crowd)
    died = time.monotonic()
    first = place.online()
    assert len(first) == 10_000
    missing: list[int] = []
    while True:
        late = time.monotonic()
        place.beat_all(living)
        shown = place.online()
        missing.append(sum(member not in shown for member, _ in living))
        if len(shown) == len(living):
            break
        assert time.monotonic() - died < 20
        time.sleep(max(0.0, 0.3 - (time.monotonic() - late)))
    assert sum(missing) == 0, "nobody who lives was off the list"
    assert time.monotonic() - died < 2 * 3.0 + 5.0, "the seconds more are this machine's"
    assert redis.hlen(keys.members(place.key)) == 9000, "the silent were evicted, not only hidden"
    assert redis.pttl(place.key) > 0
    assert redis.pttl(keys.members(place.key)) > 0


def test_process_that_is_killed_is_missed(place: Presence, watch: Watch) -> None:
    code = "import time; from worker.live import Presence\nwith Presence('room', beat_s=1.0).keep('ann', 'desk'): time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        assert watch.next(30) == Diff(["ann"], [])
        time.sleep(2.5)
        assert place.online() == {"ann": ["desk"]}
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert watch.next(30) == Diff([], ["ann"])


def test_heart_says_good_bye(place: Presence, watch: Watch) -> None:
    with place.keep("ann"):
        assert watch.next(10) == Diff(["ann"], [])
    assert place.online() == {}
    assert watch.next(10) == Diff([], ["ann"])


def test_flush_is_healed_by_the_next_heartbeat_and_an_outage_is_counted(place: Presence, redis: Redis, stack: Stack) -> None:
    missed = OUTAGES.labels("presence", "beat missed")._value
    before = missed.get()
    with place.keep("ann"):
        eventually(place.online)
        redis.flushall()
        eventually(place.online)
        stack.redis.kill()
        eventually(lambda: missed.get() > before)
        with pytest.raises(StoreUnavailable):
            place.online()
        stack.redis.start()
        eventually(place.online, timeout=20)


def test_watcher_begins_anew_with_the_whole_list_after_an_outage(place: Presence, watch: Watch, stack: Stack) -> None:
    stack.redis.kill()
    time.sleep(0.5)
    stack.redis.start()
    eventually(lambda: place.beat("bob") or True, timeout=20)

    def told() -> bool:
        diff = watch.next(1)
        return diff is not None and (diff.whole or diff.came == ["bob"])

    eventually(told, timeout=20)


def test_typing_is_over_by_itself_or_at_once(env: dict[str, str]) -> None:
    typing = Typing("job:7")
    assert typing.life_s == pytest.approx(4.0)
    assert Presence("job:7", beat_s=2.0).life_s == LIFE_BEATS * 2.0
    typing.beat("ann")
    typing.beat("bob")
    typing.leave("bob")
    assert list(typing.online()) == ["ann"]
    assert Presence("job:7").online() == {}, "looking is another matter"
    eventually(lambda: typing.online() == {}, timeout=10)


def test_names_of_any_kind_are_kept_apart(place: Presence, watch: Watch) -> None:
    names = ['a"]', "a/b", "ü\n", "{}", "[1]", "a\\", " "]
    place.beat_all([(name, "x/y") for name in names])
    place.beat_all([(name, "x/y") for name in names])
    assert place.online() == {name: ["x/y"] for name in names}
    came = watch.next(10)
    assert came is not None
    assert sorted(came.came) == sorted(names)
    for name in names:
        place.leave(name, "x/y")
    assert place.online() == {}


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda: Presence(""), "place: ''"), (lambda: Presence("x", beat_s=0), "beat_s: 0 is not"),
        (lambda: Presence("x").beat(""), "member: ''"), (lambda: Presence("x").beat("a", "d" * 256), "device"),
        (lambda: Presence("x").beat("\ud800"), "half a character"),
    ],
)  # fmt: skip
def test_bad_input_is_named(work: Callable[[], object], told: str) -> None:
    with pytest.raises(InvalidLive, match=told):
        work()


# ---- put to use


def test_worker_is_shown_on_line_while_it_is(holdfast: Callable[..., Said], env: dict[str, str], stack: Stack) -> None:
    node = Node("w1", ["default"], set, lambda *_: None)
    node.register()
    (row,) = holdfast("workers", "ls", "--json").document
    assert row["online"] is False, "it has not begun"
    node.start()
    eventually(FLEET.online)
    (row,) = holdfast("workers", "ls", "--json").document
    assert (row["online"], row["status"]) == (True, "up")
    node.leave()
    (row,) = holdfast("workers", "ls", "--json").document
    assert (row["online"], row["status"]) == (False, "left")
    stack.redis.kill()
    (row,) = holdfast("workers", "ls", "--json").document
    assert row["online"] is None


def test_notes_on_a_job_and_who_writes_one(db_job: tuple[psycopg.Connection[Any], str]) -> None:
    conn, job_id = db_job
    notes.writers(job_id).beat("ann")
    notes.lookers(job_id).beat("ann", "tab-1")
    notes.lookers(job_id).beat("bob")
    assert list(notes.writers(job_id).online()) == ["ann"]
    assert list(notes.lookers(job_id).online()) == ["ann", "bob"]
    first = notes.add(conn, job_id, "ann", "it waits for the <b>bank</b>")
    notes.add(conn, job_id, "bob", "since\nMonday")
    assert [(note["author"], note["text"]) for note in notes.listed(conn, job_id)] == [
        ("ann", "it waits for the <b>bank</b>"), ("bob", "since\nMonday"),
    ]  # fmt: skip
    assert notes.remove(conn, job_id, first["id"])
    assert not notes.remove(conn, job_id, first["id"])
    conn.execute("UPDATE job_notes SET created_at = created_at - interval '90 days'")
    notes.prune(conn)
    assert len(notes.listed(conn, job_id)) == 1, "the job lives"
    conn.execute("DELETE FROM jobs")
    notes.prune(conn)
    assert notes.listed(conn, job_id) == []
    with pytest.raises(JobNotFound):
        notes.add(conn, "nobody", "ann", "x")
    for text in ("", " \n", "x" * 10_001, "a\0b"):
        with pytest.raises(InvalidLive):
            notes.add(conn, job_id, "ann", text)


@pytest.fixture
def db_job(db: psycopg.Connection[Any]) -> tuple[psycopg.Connection[Any], str]:
    """A job that waits."""
    return db, add.delay(1, 2).id
