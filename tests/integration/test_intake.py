"""The intake: an entry is one job, whatever dies, is flushed or comes twice; what cannot be a job is set aside with a reason."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests import sample_tasks as tasks
from tests.harness import eventually, forget
from tests.integration.conftest import Bench
from tests.integration.test_cli import Said, holdfast  # noqa: F401 - a fixture
from worker import faults
from worker.app import app
from worker.embedded import Stack
from worker.engine.intake import MOST_DELIVERIES, Intake
from worker.errors import StreamGone
from worker.store import keys
from worker.streams import groups_of

Conn = psycopg.Connection[Any]

ADD = {"task": tasks.add.name, "args": "[1, 2]"}


@pytest.fixture
def intake(env: dict[str, str]) -> Intake:
    """A consumer that works when told: `intake.round()`."""
    app.finalize()
    return Intake(app)


def put(redis: Redis, **fields: Any) -> str:
    """Append an entry as any service would."""
    return redis.xadd(keys.intake(), {**ADD, **fields}).decode()  # type: ignore[union-attr]


def rows(db: Conn, columns: str = "id") -> list[Any]:
    """Return the jobs, living and past."""
    both = f"SELECT {columns} FROM jobs UNION ALL SELECT {columns} FROM job_history"
    return db.execute(both).fetchall()  # type: ignore[call-overload,no-any-return]


def letters(intake: Intake) -> list[tuple[str, str]]:
    """Return code and field of the dead letters, the oldest first."""
    return [(letter.code, letter.field) for letter in reversed(intake.dead.list())]


# ---- what an entry asks for


def test_entry_becomes_a_job_that_runs(redis: Redis, db: Conn, intake: Intake, bench: Bench) -> None:
    put(redis)
    put(redis, args="[]", kwargs='{"x": 3, "y": 4}', priority="2", caller="shop", metadata='{"order": 17}')
    intake.round()
    bench.work()
    found = db.execute("SELECT state, priority, caller, result::text FROM job_history ORDER BY finished_at").fetchall()
    assert found == [("succeeded", 2, "shop", "7"), ("succeeded", 5, None, "3")]
    assert [(state.lag, state.pending) for state in groups_of(intake.stream)] == [(0, 0)]


def test_delay_expiry_moment_and_uniqueness_are_kept(redis: Redis, db: Conn, intake: Intake) -> None:
    put(redis, delay="90s")
    put(redis, at="2040-01-31T08:00:00+01:00")
    put(redis, expires="1h", max_attempts="3", key="k")
    put(redis, unique="one")
    put(redis, unique="one")
    intake.round()
    found = db.execute(
        "SELECT state, round(extract(epoch FROM available_at - created_at)), available_at, expires_at IS NULL, max_attempts,"
        " unique_key IS NULL, idempotency_key FROM jobs ORDER BY created_at"
    ).fetchall()
    assert letters(intake) == []
    assert [row[0] for row in found] == ["scheduled", "scheduled", "queued", "queued"]
    assert found[0][1] == 90
    assert found[1][2] == datetime(2040, 1, 31, 7, tzinfo=UTC)
    assert found[2][3:5] == (False, 3)
    assert found[2][6] == "k"
    assert found[3][5] is False


def test_key_is_the_same_job_through_any_door(redis: Redis, db: Conn, intake: Intake) -> None:
    here = tasks.add.apply_async((1, 2), idempotency_key="order-17", caller="shop").id
    put(redis, key="order-17", caller="shop")
    put(redis, key="order-18", caller="shop")
    put(redis, key="order-18", caller="shop")
    put(redis, key="order-18", caller="other")
    put(redis, key="order-17", caller="shop", args="[3, 4]")
    intake.round()
    assert letters(intake) == [("idempotency_conflict", "idempotency_key")]
    found = rows(db, "caller, idempotency_key, id")
    assert sorted(row[:2] for row in found) == [("other", "order-18"), ("shop", "order-17"), ("shop", "order-18")]
    assert here in {row[2] for row in found}
    (known,) = [row[2] for row in found if row[:2] == ("shop", "order-18")]
    assert tasks.add.apply_async((1, 2), idempotency_key="order-18", caller="shop").id == known


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no task": ({"task": ""}, "invalid_job", "task"),
    "unknown task": ({"task": "shop.nothing"}, "unknown_task", "task"),
    "unknown field": ({"tsak": "x"}, "invalid_job", "tsak"),
    "unknown queue": ({"queue": "nowhere"}, "unknown_queue", "queue"),
    "args that are no JSON": ({"args": "[1, 2"}, "invalid_job", "args"),
    "args that are no list": ({"args": '{"x": 1}'}, "invalid_job", "args"),
    "a number JSON has no word for": ({"args": "[NaN, 1]"}, "invalid_job", "args"),
    "args that are too deep": ({"args": "[" * 100_000}, "invalid_job", "args"),
    "kwargs that are no object": ({"kwargs": "[1]"}, "invalid_job", "kwargs"),
    "too few arguments": ({"args": "[1]"}, "invalid_arguments", "kwargs.y"),
    "an argument that is none": ({"kwargs": '{"z": 1}'}, "invalid_arguments", "kwargs.z"),
    "a priority in words": ({"priority": "high"}, "invalid_job", "priority"),
    "a priority beyond": ({"priority": "10"}, "invalid_job", "priority"),
    "a delay in words": ({"delay": "soon"}, "invalid_job", "delay"),
    "a moment that is none": ({"at": "tomorrow"}, "invalid_job", "at"),
    "no UTF-8": ({"caller": b"\xff"}, "invalid_job", "caller"),
    "a zero byte": ({"key": "a\0b"}, "invalid_job", "idempotency_key"),
    "metadata that is no object": ({"metadata": "[1]"}, "invalid_job", "metadata"),
    "half a surrogate": ({"kwargs": '{"x": "\\ud800"}', "task": tasks.echo.name}, "invalid_arguments", "kwargs.x"),
    "a zero byte inside": ({"metadata": '{"a": "\\u0000"}'}, "invalid_job", "metadata"),
}


def test_what_cannot_be_a_job_is_set_aside_and_never_blocks_those_behind_it(
    redis: Redis, db: Conn, intake: Intake
) -> None:
    cases = {}
    for case, (fields, _, _) in BAD.items():
        cases[put(redis, **fields)] = case
        put(redis)
    redis.xadd(keys.intake(), {b"\xff\xfe": b"\0"})
    put(redis)
    intake.round()
    found = {cases[letter.origin]: (letter.code, letter.field) for letter in intake.dead.list() if letter.origin in cases}
    assert found == {case: (code, field) for case, (_, code, field) in BAD.items()}
    assert len(letters(intake)) == len(BAD) + 1
    assert len(rows(db)) == len(BAD) + 1
    assert [(state.lag, state.pending) for state in groups_of(intake.stream)] == [(0, 0)]
    assert all(letter.reason for letter in intake.dead.list())


def test_dead_letter_is_requeued_once_its_cause_is_gone(redis: Redis, db: Conn, intake: Intake) -> None:
    put(redis, task="tests.later")
    intake.round()
    (letter,) = intake.dead.list()
    assert letter.fields["task"] == b"tests.later"

    @app.task(name="tests.later")
    def later(x: int, y: int) -> None:
        pass

    try:
        intake.dead.requeue(letter.id)
        intake.round()
    finally:
        app.tasks.unregister("tests.later")
    assert [row[0] for row in rows(db, "task")] == ["tests.later"]
    assert len(intake.dead) == 0


# ---- once


def test_entry_that_is_read_again_is_the_same_job_living_or_past(
    redis: Redis, db: Conn, intake: Intake, bench: Bench, conf: Callable[..., None]
) -> None:
    conf(intake_reclaim_s=0.05)
    put(redis)
    put(redis, key="k")
    for _ in range(3):
        entries = intake.group.read()
        intake.accept(intake.group, entries)  # and die before the acknowledgement
        bench.work()
        time.sleep(0.1)
        Intake(app).take_over()
        redis.xgroup_setid(keys.intake(), "holdfast", "0")  # as a Redis that lost its last second does
    assert len(rows(db)) == 2


def test_entry_for_which_another_job_stood_makes_none_when_it_is_read_again_later(
    redis: Redis, db: Conn, intake: Intake, bench: Bench
) -> None:
    for _ in range(2):
        put(redis, unique="one")
        put(redis, key="k")
    entries = intake.group.read()
    intake.accept(intake.group, entries)
    bench.work()
    db.execute("DELETE FROM job_keys WHERE key = 'k'")
    tally, _ = intake.accept(intake.group, entries)
    assert (tally.accepted, tally.known) == (0, 4)
    assert len(rows(db)) == 2


def test_another_entry_under_the_same_id_is_another_job(redis: Redis, db: Conn, intake: Intake) -> None:
    redis.xadd(keys.intake(), ADD, id="5-1")  # type: ignore[arg-type]
    intake.round()
    redis.xadd(keys.intake(), ADD, id="99999999999999999-0")  # type: ignore[arg-type]
    intake.round()
    redis.flushall()
    with pytest.raises(StreamGone):
        intake.round()
    redis.xadd(keys.intake(), ADD, id="5-1")  # type: ignore[arg-type]
    intake.round()
    assert len(rows(db)) == 3, "the same id and fields, in another life of the stream; and one that lies in the future"


def test_consumer_that_did_not_see_the_flush_goes_by_the_new_life(redis: Redis, db: Conn, intake: Intake) -> None:
    other = Intake(app)
    for each in (intake, other):
        each.round()
    redis.flushall()
    with pytest.raises(StreamGone):
        other.round()
    put(redis)
    entries = intake.group.read()  # the group is there again, so nothing tells of the flush
    intake.take(entries)
    other.group.ensure()
    tally, _ = other.accept(other.group, entries)
    assert (tally.accepted, tally.known) == (0, 1)


def test_two_consumers_with_the_same_entries_make_each_job_once(
    redis: Redis, db: Conn, intake: Intake, bench: Bench
) -> None:
    """As when one is slow and the other takes over; the jobs end while they are at it."""
    for number in range(300):
        put(redis, args=f"[{number}, 1]")
    entries = intake.group.read(limit=300)
    others = [Intake(app) for _ in range(3)]
    threads = [threading.Thread(target=other.accept, args=(other.group, entries)) for other in others]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        bench.work()
    for thread in threads:
        thread.join()
    bench.work()
    assert len(rows(db)) == 300


def test_heir_of_a_slow_consumer_waits_for_what_that_commits(redis: Redis, db: Conn, intake: Intake) -> None:
    for number in range(20):
        put(redis, args=f"[{number}, 1]")
    entries = intake.group.read()
    pid = os.fork()
    if pid == 0:
        try:
            faults.arm("after-insert:sleep")
            slow = Intake(app)
            slow.accept(slow.group, entries)
        finally:
            os._exit(0)
    eventually(lambda: db.execute("SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted").fetchall())
    tally, refused = intake.accept(intake.group, entries)
    os.waitpid(pid, 0)
    assert (tally.accepted, tally.known, refused) == (0, 20, [])
    assert len(rows(db)) == 20


STEPS = (faults.AFTER_READ, faults.AFTER_INSERT, faults.AFTER_COMMIT, faults.AFTER_PUBLISH, faults.BEFORE_ACK, faults.AFTER_ACK)


def consume_and_die(point: str) -> int:
    """Run a consumer in a forked copy of this process that is killed at a point; return its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            faults.arm(f"{point}:kill")
            Intake(app).round()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("point", STEPS)
def test_consumer_killed_at_any_step_loses_and_doubles_nothing_with_trimming_on(
    redis: Redis, db: Conn, conf: Callable[..., None], point: str
) -> None:
    conf(intake_keep_size=0, intake_reclaim_s=0.2)
    forget()
    for number in range(40):
        put(redis, args=f"[{number}, 0]", **({"key": f"k{number}"} if number % 2 else {}))
    put(redis, task="nothing")
    assert consume_and_die(point) == -signal.SIGKILL
    heir = Intake(app)
    heir._trim_at = 0.0
    deadline = time.monotonic() + 20
    while (state := groups_of(heir.stream)[0]).pending or state.lag or len(heir.stream):
        heir.round()
        heir._trim_at = 0.0
        assert time.monotonic() < deadline
    told = sorted(json.loads(body)[0][0] for (body,) in rows(db, "message ->> 'body'"))
    assert told == list(range(40))
    assert letters(heir) == [("unknown_task", "task")]
    heir.group.forget_idle(0.0)
    assert groups_of(heir.stream)[0].consumers == 0


def test_entry_that_kills_its_readers_is_set_aside_alone(
    redis: Redis, db: Conn, intake: Intake, conf: Callable[..., None]
) -> None:
    conf(intake_reclaim_s=0.05)
    put(redis)
    killer = put(redis, metadata='{"kill": true}')
    put(redis)
    intake.group.read()

    class Mortal(Intake):
        def take(self, entries: Any) -> Any:
            if any(b"kill" in entry.fields.get("metadata", b"") for entry in entries):
                raise MemoryError
            return super().take(entries)

    for _ in range(MOST_DELIVERIES + 1):
        time.sleep(0.06)
        while True:
            try:
                Mortal(app).take_over()
                break
            except MemoryError:
                time.sleep(0.06)
    (letter,) = intake.dead.list()
    assert (letter.origin, letter.code, letter.deliveries) == (killer, "poison", MOST_DELIVERIES + 1)
    assert len(rows(db)) == 2
    assert intake.group.pending() == []


# ---- outages


def test_postgres_away_holds_entries_back_and_is_nobodys_fault(
    redis: Redis, intake: Intake, stack: Stack, db: Conn, conf: Callable[..., None]
) -> None:
    conf(intake_reclaim_s=0.5)
    for _ in range(10):
        put(redis)
    stack.postgres.freeze()
    thread = threading.Thread(target=intake.round)
    stack.postgres.thaw()
    stack.postgres.stop()
    thread.start()
    time.sleep(2.0)
    Intake(app).group.reclaim(idle_s=60)
    assert len(intake.group.pending()) == 10
    stack.postgres.start()
    thread.join(30)
    assert not thread.is_alive()
    with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
        assert conn.execute("SELECT count(*) FROM jobs").fetchone() == (10,)
    assert len(intake.dead) == 0


def test_flush_loses_what_was_not_committed_and_nothing_else(redis: Redis, db: Conn, intake: Intake) -> None:
    put(redis)
    intake.round()
    put(redis)
    redis.flushall()
    with pytest.raises(StreamGone):
        intake.round()
    put(redis)
    intake.round()
    assert len(rows(db)) == 2


# ---- again


def test_replay_accepts_what_a_restored_database_does_not_know(redis: Redis, db: Conn, intake: Intake, bench: Bench) -> None:
    for number in range(10):
        put(redis, args=f"[{number}, 0]")
    put(redis, task="nothing")
    intake.round()
    db.execute("DELETE FROM jobs WHERE id IN (SELECT id FROM jobs ORDER BY id LIMIT 4)")
    put(redis, args="[10, 0]")
    since = datetime.now(UTC) - timedelta(hours=1)
    tally = Intake(app).replay("again", since)
    assert (tally.accepted, tally.known, tally.refused) == (5, 6, 1)
    assert [(state.group, state.lag, state.pending) for state in groups_of(intake.stream)] == [("holdfast", 1, 0)]
    intake.round()
    assert len(rows(db)) == 11
    assert len(intake.dead) == 1


def test_command_shows_lag_and_dead_letters_and_puts_them_back(
    holdfast: Callable[..., Said], redis: Redis, db: Conn, intake: Intake  # noqa: F811
) -> None:
    put(redis, task="nothing", raw=b"\xff")
    put(redis, task="nothing")
    put(redis)
    intake.round()
    (lag,) = holdfast("streams", "lag", "--json").document
    assert (lag["stream"], lag["group"], lag["lag"], lag["pending"]) == ("holdfast:intake", "holdfast", 0, 0)
    assert "holdfast:intake" in holdfast("streams", "lag").out
    found = holdfast("streams", "dead", "--json").document
    assert [letter["code"] for letter in found] == ["unknown_task", "invalid_job"]
    assert found[1]["fields"]["raw"] == "\\xff"
    assert "nothing" in holdfast("streams", "dead").out
    assert holdfast("streams", "requeue").code == 2
    assert holdfast("streams", "requeue", "1-1").code == 5
    assert list(holdfast("streams", "requeue", found[0]["id"], "--json").document) == [found[0]["id"]]
    assert holdfast("streams", "dead", "--drop", found[1]["id"]).code == 0
    assert len(intake.dead) == 0
    assert holdfast("streams", "trim", "--json").document == {"dropped": 3}, "what was put back is not read yet"
    assert holdfast("streams", "replay", "--since", "1h", "--json").document == {"accepted": 0, "known": 0, "refused": 1}
    assert len(intake.stream) == 1
