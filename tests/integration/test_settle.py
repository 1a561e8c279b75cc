"""How attempts end: each job once, with the cause, and with all that hangs on it; each run driven by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import psycopg
import pytest
from celery import chain, chord
from celery.exceptions import ChordError, Reject, TaskRevokedError
from redis import Redis
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests import sample_tasks as t
from tests.harness import eventually
from tests.integration.conftest import Bench
from worker.app import app
from worker.db import statement
from worker.embedded import Stack
from worker.engine import node
from worker.engine.relay import Relay
from worker.engine.run import returns
from worker.ledger import manage, nodes
from worker.store import keys

Conn = psycopg.Connection[Any]

#: Rounds after which a job that still has something to run would run for ever.
_ENOUGH = 20


@app.task(bind=True)
def end_connection(self: Any, when: str) -> str:
    """Lose the own connection to Postgres: while it runs, or unnoticed until it ends."""
    pid = self.session.execute(text("SELECT pg_backend_pid()")).scalar()
    with statement() as conn:
        conn.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    if when == "while it runs":
        self.session.execute(text("SELECT 1"))
    return when


@app.task(bind=True)
def restart_postgres(self: Any, home: str) -> None:
    """Record an effect, and restart Postgres before it is committed, the first time."""
    self.once("restarted")
    if self.request.holdfast["r"] == 0:
        stack = Stack(Path(home), fsync=False)
        stack.load()
        stack.postgres.restart()


class Elsewhere(DeclarativeBase):
    """Apart from Holdfast's own tables."""


class Lost(Elsewhere):
    """A row of a table that nobody has made."""

    __tablename__ = "no_such_table"
    id: Mapped[int] = mapped_column(primary_key=True)


@app.task(bind=True)
def add_to_missing_table(self: Any) -> None:
    self.session.add(Lost(id=1))


@app.task
def swell(size: int) -> str:
    return "x" * size


@app.task(bind=True)
def cancelled_meanwhile(self: Any, how: str) -> str:
    """Be asked to stop, then end in a way that brings the job back."""
    assert app.control.cancel(self.request.id) == "asked to stop"
    if how == "retries":
        raise self.retry(countdown=0)
    if how == "retries later":
        raise self.retry(countdown=60)
    if how == "is rejected":
        raise Reject("not now", requeue=True)
    if how == "is handed back":
        with statement() as conn:
            nodes.give_back_all(conn, node.current_id())
    else:
        end_connection.run.__func__(self, "while it runs")
    return how


@app.task
def rejected(*_: Any) -> None:
    raise Reject("not mine", requeue=False)


@app.task
def give(name: str) -> Any:
    """Return what no JSON says."""
    return {"NaN": math.nan, "infinity": {"deep": [math.inf]}, "an object": object()}[name]


@app.task(ignore_result=True)
def give_ignored() -> float:
    return math.nan


@app.task(bind=True)
def give_noted(self: Any, name: str) -> Any:
    """Record an effect first."""
    self.once("given")
    return give.run(name)


@app.task(bind=True)
def commit_early(self: Any) -> None:
    self.once("early")
    self.session.commit()


@app.task(bind=True)
def commit_savepoint(self: Any) -> None:
    with self.session.begin_nested():
        self.once("kept")
    undone = self.session.begin_nested()
    self.once("undone")
    undone.rollback()


def drain(bench: Bench, relay: Relay) -> list[str]:
    """Run all there is to run and what comes of it; return the ids in order. Raises `AssertionError` when there is no end."""
    ran: list[str] = []
    for _ in range(_ENOUGH):
        relay.send_due()
        if not (now := bench.work()):
            return ran
        ran += now
    raise AssertionError(f"there is no end to it: {ran[-5:]}")


def past(db: Conn, job_id: str, columns: str = "state, attempt, error") -> tuple[Any, ...]:
    """Return how a job ended."""
    row = db.execute(f"SELECT {columns} FROM job_history WHERE id = %s ORDER BY finished_at DESC LIMIT 1", (job_id,)).fetchone()
    assert row is not None, f"job {job_id} has not ended"
    return row


def effects(db: Conn, job_id: str) -> list[str]:
    return [row[0] for row in db.execute("SELECT name FROM effects WHERE job_id = %s", (job_id,))]


def living(db: Conn) -> list[Any]:
    return db.execute("SELECT id, task, state, error FROM jobs").fetchall()


@contextmanager
def running(bench: Bench, tmp_path: Path) -> Iterator[tuple[str, dict[str, Any], Callable[[], None]]]:
    """A job that runs in a thread: its id, its message, and what lets it end."""
    started, gate = tmp_path / "started", tmp_path / "gate"
    job = t.wait_for.delay(str(gate), str(started), str(tmp_path / "log"))
    message = bench.take()
    assert message is not None
    with ThreadPoolExecutor(1) as pool:
        attempt = pool.submit(bench.run, message)
        eventually(started.exists)

        def end() -> None:
            gate.touch()
            attempt.result()

        try:
            yield job.id, message, end
        finally:
            gate.touch()


# ---- duplicates


def test_duplicate_delivered_to_the_worker_that_runs_the_job_neither_ends_nor_unlocks_it(
    db: Conn, bench: Bench, tmp_path: Path
) -> None:
    with running(bench, tmp_path) as (job_id, message, end):
        lock = bench.redis.get(keys.job_lock(job_id))
        row = db.execute("SELECT state, attempt, claim_token, delivery_tag FROM jobs").fetchone()
        assert lock is not None
        bench.run(message)
        assert bench.redis.get(keys.job_lock(job_id)) == lock
        assert db.execute("SELECT state, attempt, claim_token, delivery_tag FROM jobs").fetchone() == row
        bench.redis.delete(keys.job_lock(job_id))  # as after a flush: the claim alone stands in its way
        bench.run(message)
        assert db.execute("SELECT state, attempt, claim_token, delivery_tag FROM jobs").fetchone() == row
        end()
    assert past(db, job_id) == ("succeeded", 1, None)
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_duplicate_of_a_job_that_has_ended_is_dropped(db: Conn, bench: Bench) -> None:
    job = t.add.delay(1, 2)
    message = bench.take()
    assert message is not None
    for _ in range(2):
        bench.run(message)
    assert db.execute("SELECT state, attempt FROM job_history").fetchall() == [("succeeded", 1)]
    assert job.get(timeout=2) == 3


# ---- cancelled, given up, handed back


@pytest.mark.parametrize("how", ["retries", "retries later", "is rejected", "is handed back", "loses its connection"])
def test_job_that_is_cancelled_while_it_runs_and_comes_back_ends_cancelled(
    how: str, db: Conn, bench: Bench, relay: Relay
) -> None:
    job = cancelled_meanwhile.delay(how)
    bench.work(most=1)
    assert len(living(db)) == 1, "it came back"
    drain(bench, relay)
    relay.expire()
    drain(bench, relay)
    assert past(db, job.id, "state, attempt") == ("cancelled", 1)
    assert living(db) == []
    with pytest.raises(TaskRevokedError):
        app.AsyncResult(job.id).get(timeout=2)


def test_revoked_job_that_is_replayed_runs(db: Conn, bench: Bench, relay: Relay) -> None:
    job = t.add.delay(1, 2)
    app.control.revoke(job.id)
    assert job.state == "REVOKED"
    manage.replay(db, job.id)
    assert app.AsyncResult(job.id).state == "PENDING"
    drain(bench, relay)
    assert app.AsyncResult(job.id).get(timeout=2) == 3
    assert past(db, job.id) == ("succeeded", 1, None)


def test_job_cancelled_while_it_ran_is_not_cancelled_again_when_it_is_replayed(db: Conn, bench: Bench, relay: Relay) -> None:
    job = cancelled_meanwhile.delay("retries")
    drain(bench, relay)
    relay.expire()
    manage.replay(db, job.id)
    relay.expire()
    assert living(db)[0][2] == "queued"
    bench.redis.delete(keys.job_lock(job.id))
    relay.send_due()
    assert bench.work(most=1) == [job.id]
    assert db.execute("SELECT attempt FROM jobs").fetchone() == (2,)


GIVEN_UP: dict[str, tuple[Any, str]] = {
    "all attempts used": (t.two_attempts.si(), "all 2 attempts used"),
    "rejected for good": (rejected.si(), "rejected: 'not mine'"),
}


@pytest.mark.parametrize("case", GIVEN_UP)
def test_part_of_a_chord_that_is_given_up_fails_the_chord(case: str, db: Conn, bench: Bench, relay: Relay) -> None:
    part, why = GIVEN_UP[case]
    result = chord([part, t.add.s(1, 1)], t.total.s()).delay()
    drain(bench, relay)
    assert living(db) == []
    with pytest.raises(ChordError, match=str(result.parent.results[0].id)):
        app.AsyncResult(result.id).get(timeout=2)
    state, _, error = past(db, result.parent.results[0].id)
    assert (state, why in error) == ("discarded", True)
    assert db.execute("SELECT count(*) FROM chords WHERE done_at IS NULL").fetchone() == (0,)


@pytest.mark.parametrize("case", GIVEN_UP)
def test_last_part_of_a_chord_that_is_given_up_fails_the_chord_with_the_body_s_errback(
    case: str, db: Conn, bench: Bench, relay: Relay, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    body = t.total.s().on_error(t.note_failed_id.s(str(log)))
    result = chord([t.add.s(1, 1), GIVEN_UP[case][0]], body).delay()
    drain(bench, relay)
    assert log.read_text().split() == [result.id]


@pytest.mark.parametrize("case", GIVEN_UP)
def test_link_of_a_chain_that_is_given_up_fails_the_rest_of_the_chain(case: str, db: Conn, bench: Bench, relay: Relay) -> None:
    result = chain(t.add.s(1, 1), GIVEN_UP[case][0], t.add.si(2, 2)).delay()
    drain(bench, relay)
    assert living(db) == []
    assert app.AsyncResult(result.id).state == "FAILURE"


def test_job_handed_back_at_shutdown_is_unlocked_and_starts_elsewhere_while_the_first_still_runs(
    db: Conn, bench: Bench, relay: Relay, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with running(bench, tmp_path) as (job_id, _, end), ThreadPoolExecutor(1) as elsewhere:
        assert nodes.give_back_all(db, node.current_id()) == [job_id]
        assert not bench.redis.exists(keys.job_lock(job_id))
        relay.send_due()
        again = bench.take()
        assert again is not None
        second = elsewhere.submit(bench.run, again)
        eventually(lambda: len(log.read_text().splitlines()) == 2, what="the second run")
        assert db.execute("SELECT state, attempt, crashes FROM jobs").fetchone() == ("running", 2, 0)
        end()
        second.result()
    assert db.execute("SELECT state, attempt, crashes FROM job_history").fetchall() == [("succeeded", 2, 0)]
    assert db.execute("SELECT outcome FROM attempts").fetchall() == [("handed back",)]


# ---- results that cannot be kept


WRITTEN = {"NaN": "NaN or Infinity", "infinity": "NaN or Infinity", "an object": "object"}


@pytest.mark.parametrize("name", WRITTEN)
def test_result_that_is_no_json_fails_the_job_once_with_the_cause_and_undoes_it(
    name: str, db: Conn, bench: Bench, relay: Relay
) -> None:
    job = give_noted.delay(name)
    assert drain(bench, relay) == [job.id]
    state, attempt, error = past(db, job.id)
    assert (state, attempt) == ("failed", 1)
    assert WRITTEN[name] in error
    assert effects(db, job.id) == []
    with pytest.raises(Exception, match=WRITTEN[name]):
        app.AsyncResult(job.id).get(timeout=2)


@pytest.mark.parametrize("part", [give.s("NaN"), give.s("an object"), give_ignored.s()], ids=["NaN", "an object", "ignored"])
def test_part_whose_result_is_no_json_fails_its_chord(part: Any, db: Conn, bench: Bench, relay: Relay) -> None:
    result = chord([t.add.s(1, 1), part], t.total.s()).delay()
    drain(bench, relay)
    assert living(db) == []
    assert past(db, result.parent.results[1].id, "state, attempt") == ("failed", 1)
    with pytest.raises(ChordError):
        app.AsyncResult(result.id).get(timeout=2)


def test_link_whose_arguments_are_too_large_fails_the_job_that_would_send_it_once(
    db: Conn, bench: Bench, relay: Relay, conf: Callable[..., None]
) -> None:
    conf(max_message_bytes=3000)
    result = chain(swell.s(4000), t.echo.s(), t.noop.si()).delay()
    first = result.parent.parent.id
    assert drain(bench, relay) == [first]
    state, attempt, error = past(db, first)
    assert (state, attempt) == ("failed", 1)
    assert error.startswith("MessageTooLarge: ")
    assert app.AsyncResult(result.id).state == "FAILURE", "the rest of the chain has failed with it"
    assert living(db) == []


def test_results_too_large_for_the_body_fail_the_chord(
    db: Conn, bench: Bench, relay: Relay, conf: Callable[..., None]
) -> None:
    conf(max_message_bytes=3000)
    result = chord([t.echo.s("x" * 1600), t.echo.s("y" * 1600)], t.noop.si()).delay()
    big = chord([t.echo.s("x" * 1600), t.echo.s("y" * 1600)], t.echo.s()).delay()
    drain(bench, relay)
    assert app.AsyncResult(result.id).get(timeout=2) is None
    with pytest.raises(ChordError, match="the results cannot be sent to the body"):
        app.AsyncResult(big.id).get(timeout=2)
    assert living(db) == []


# ---- what is told


def test_progress_that_is_told_late_is_never_served_over_the_result(bench: Bench, cache: Redis) -> None:
    result = t.add.delay(1, 2)
    bench.work()
    late = {"done": 1, "total": 2, "note": "late"}
    app.backend.tell(result.id, "PROGRESS", late)
    for _ in range(2):
        fresh = app.AsyncResult(result.id)
        assert (fresh.state, fresh.get(timeout=2)) == ("SUCCESS", 3)
        assert dict(app.backend.get_many([result.id], timeout=2))[result.id]["result"] == 3
        app.backend.store_result(result.id, late, "PROGRESS")  # as `update_state` of an attempt that was cut off
        assert b"PROGRESS" in cache.get(keys.result(result.id))  # type: ignore[operator]


def test_who_waits_is_not_told_progress_for_a_result(bench: Bench) -> None:
    result = t.add.delay(1, 2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(result.get, timeout=10, interval=5)
        app.backend.store_result(result.id, {"done": 1}, "PROGRESS")
        bench.work()
        assert waiting.result() == 3


# ---- the session


def test_commit_of_the_session_in_the_body_is_refused_and_fails_the_job(db: Conn, bench: Bench, relay: Relay) -> None:
    job = commit_early.delay()
    assert drain(bench, relay) == [job.id]
    state, attempt, error = past(db, job.id)
    assert (state, attempt) == ("failed", 1)
    assert error.startswith("HoldfastError: self.session commits with the job's end")
    assert error.endswith("flush() it, do not commit()")
    assert effects(db, job.id) == []


def test_savepoints_of_the_session_are_the_bodys_own(db: Conn, bench: Bench) -> None:
    job = commit_savepoint.delay()
    bench.work()
    assert past(db, job.id)[0] == "succeeded"
    assert effects(db, job.id) == ["kept"]


# ---- replacements


REPLACED = {"a chain": (t.become_chain, 106), "a group": (t.become_group, [1, 2, 3])}


@pytest.mark.parametrize("case", REPLACED)
def test_job_that_replaced_itself_in_time_does_not_expire_while_it_waits_for_its_canvas(
    case: str, db: Conn, bench: Bench, relay: Relay
) -> None:
    task, value = REPLACED[case]
    result = task.apply_async((1,), expires=60)
    bench.work(most=1)
    db.execute("UPDATE jobs SET expires_at = clock_timestamp() - interval '1 second' WHERE expires_at IS NOT NULL")
    relay.expire()
    drain(bench, relay)
    assert app.AsyncResult(result.id).get(timeout=2) == value


# ---- the order of locks


def _waits_for_a_lock(db: Conn) -> bool:
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return db.execute(sql).fetchone() == (1,)


@pytest.mark.parametrize(
    "part", [t.add.s(1, 1), t.fail.s(), rejected.s(), t.become_task.s(1)], ids=["succeeds", "fails", "is given up", "is replaced"]
)
def test_part_that_ends_locks_its_job_before_its_chord(
    part: Any, env: dict[str, str], db: Conn, bench: Bench, relay: Relay
) -> None:
    result = chord([part, t.add.s(1, 1)], t.total.s()).delay()
    job_id = result.parent.results[0].id
    if part.task == t.become_task.name:
        bench.work(most=1)
        assert bench.work(most=1) != [job_id]
        relay.send_due()
    message = bench.take()
    assert message is not None
    assert message["headers"]["id"] == job_id
    with psycopg.connect(env["DATABASE_URL"]) as holder, ThreadPoolExecutor(1) as pool:
        holder.execute("SELECT FROM chords FOR UPDATE")
        ending = pool.submit(bench.run, message)
        try:
            eventually(lambda: _waits_for_a_lock(db), what="the end of the part waiting for the chord")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                db.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE NOWAIT", (job_id,))
        finally:
            holder.rollback()
        ending.result()


def test_cancelling_a_part_locks_its_job_before_its_chord(env: dict[str, str], db: Conn, bench: Bench) -> None:
    result = chord([t.add.s(1, 1), t.add.s(2, 2)], t.total.s()).delay()
    job_id = result.parent.results[0].id
    with psycopg.connect(env["DATABASE_URL"]) as holder, ThreadPoolExecutor(1) as pool:
        holder.execute("SELECT FROM chords FOR UPDATE")
        ending = pool.submit(app.control.cancel, job_id)
        try:
            eventually(lambda: _waits_for_a_lock(db), what="the cancelling waiting for the chord")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                db.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE NOWAIT", (job_id,))
        finally:
            holder.rollback()
        assert ending.result()


def test_parts_of_a_chord_that_end_and_are_cancelled_at_one_moment_do_not_wait_for_each_other(
    db: Conn, bench: Bench, relay: Relay
) -> None:
    results = [chord([t.add.s(i, i) for i in range(4)], t.total.s()).delay() for _ in range(6)]
    for result in results:
        messages = [bench.take() for _ in range(4)]
        start = Barrier(8)

        def at_once(work: Callable[..., Any], what: Any, start: Barrier = start) -> None:
            start.wait()
            work(what)

        deeds = itertools.chain(((bench.run, m) for m in messages), ((app.control.cancel, r.id) for r in result.parent.results))
        with ThreadPoolExecutor(8) as pool:
            for future in [pool.submit(at_once, *deed) for deed in deeds]:
                future.result()
    relay.expire()
    drain(bench, relay)
    assert living(db) == []
    assert db.execute("SELECT count(*) FROM chords WHERE done_at IS NULL").fetchone() == (0,)
    assert db.execute("SELECT error FROM job_history WHERE error LIKE '%deadlock%'").fetchall() == []
    assert {app.AsyncResult(result.id).ready() for result in results} == {True}


# ---- attempts whose end Postgres did not see


def returned(db: Conn) -> None:
    """Wait until no attempt is left to be given back."""
    eventually(lambda: db.execute("SELECT FROM jobs WHERE state = 'running'").fetchone() is None, what="the job given back")


@pytest.mark.parametrize("when", ["while it runs", "when it ends"])
def test_job_that_breaks_its_connection_each_time_is_discarded_after_three_crashes(
    when: str, db: Conn, bench: Bench, relay: Relay
) -> None:
    job = end_connection.delay(when)
    for crashes in (1, 2):
        relay.send_due()
        assert bench.work(most=1) == [job.id]
        returned(db)
        assert db.execute("SELECT state, attempt, crashes FROM jobs").fetchone() == ("queued", crashes, crashes)
    relay.send_due()
    bench.work(most=1)
    eventually(lambda: not living(db), what="the end of the job")
    state, attempt, error = past(db, job.id)
    assert (state, attempt) == ("discarded", 3)
    assert error.startswith("its worker died 3 times; the last: Postgres went away when it ended: " if when == "when it ends" else
                            "its worker died 3 times; the last: Postgres went away while it ran: ")  # fmt: skip
    assert app.AsyncResult(job.id).state == "FAILURE"


def test_job_that_ends_while_postgres_is_away_is_given_back_and_blamed_for_nothing(
    stack: Stack, env: dict[str, str], bench: Bench, relay: Relay, tmp_path: Path
) -> None:
    with running(bench, tmp_path) as (job_id, _, end):
        stack.postgres.stop()
        end()
        stack.postgres.start()
    with psycopg.connect(env["DATABASE_URL"], autocommit=True) as db:
        returned(db)
        assert db.execute("SELECT state, crashes FROM jobs").fetchone() == ("queued", 0)
        assert db.execute("SELECT outcome FROM attempts").fetchall() == [("handed back",)]
        drain(bench, relay)
        assert past(db, job_id, "state, attempt, crashes") == ("succeeded", 2, 0)


def test_job_that_meets_a_restart_of_postgres_at_its_end_runs_again(
    stack: Stack, env: dict[str, str], bench: Bench, relay: Relay
) -> None:
    job = restart_postgres.delay(str(stack.home))
    bench.work(most=1)
    with psycopg.connect(env["DATABASE_URL"], autocommit=True) as db:
        returned(db)
        eventually(lambda: relay.send_due() or bench.work(most=1))
        assert past(db, job.id) == ("succeeded", 2, None)
        assert effects(db, job.id) == ["restarted"]


def test_attempt_that_is_to_be_given_back_is_not_failed_meanwhile(db: Conn, bench: Bench) -> None:
    busy = Event()
    returns.add(busy.wait)
    job = end_connection.delay("when it ends")
    try:
        bench.work(most=1)
        assert db.execute("SELECT id, state FROM jobs").fetchall() == [(job.id, "running")]
    finally:
        busy.set()
    returned(db)
    assert db.execute("SELECT state, crashes FROM jobs").fetchone() == ("queued", 1)


def test_table_that_is_missing_at_the_end_fails_the_job_and_is_no_outage(db: Conn, bench: Bench, relay: Relay) -> None:
    job = add_to_missing_table.delay()
    assert drain(bench, relay) == [job.id]
    state, attempt, error = past(db, job.id)
    assert (state, attempt) == ("failed", 1)
    assert "no_such_table" in error


def test_job_that_replaced_itself_by_one_task_in_time_does_not_expire(db: Conn, bench: Bench, relay: Relay) -> None:
    result = t.become_task.apply_async((1,), expires=60)
    bench.work(most=1)
    db.execute("UPDATE jobs SET expires_at = clock_timestamp() - interval '1 second' WHERE expires_at IS NOT NULL")
    relay.expire()
    relay.send_due()
    bench.work()
    assert app.AsyncResult(result.id).get(timeout=2) == 101
