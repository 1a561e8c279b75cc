"""Job status, schedules and queue settings through the cache: cheap for any number of askers, and true as soon as it changes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests.harness import eventually
from tests.integration.conftest import Bench
from tests.sample_tasks import add, fail, noop
from worker.app import app
from worker.cache import outbox
from worker.cli.program import invoke
from worker.db import statement
from worker.embedded import Stack
from worker.engine import beat
from worker.errors import StoreUnavailable
from worker.ledger import manage, queues, results, schedules
from worker.ledger.schedules import Spec
from worker.store import keys

Conn = psycopg.Connection[Any]


@pytest.fixture(autouse=True)
def _patient(conf: Callable[..., None]) -> None:
    """A machine that is too busy for the deadline of the cache is no outage here."""
    conf(cache_timeout_ms=2000)


@pytest.fixture
def reads(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The ids that Postgres was asked for, a list each time."""
    asked: list[list[str]] = []
    read = results.read

    def noted(conn: Conn, job_ids: list[str]) -> Any:
        asked.append(list(job_ids))
        return read(conn, job_ids)

    monkeypatch.setattr(results, "read", noted)
    return asked


@app.task(bind=True, name="test.tells")
def tells(self: Any) -> list[Any]:
    """Tell its progress as often as it can, and what somebody else then sees of it."""
    seen = []
    for done in (1, 2, 3):
        self._run("").progressed_at = 0.0
        self.progress(done, 3)
        seen.append(app.AsyncResult(self.request.id).info["done"])
    return seen


def test_many_pollers_of_one_job_cost_postgres_two_reads_a_second_at_most(bench: Bench, reads: list[list[str]]) -> None:
    job = add.delay(1, 2)
    seen: set[str] = set()
    until = time.monotonic() + 3

    def poll() -> None:
        while time.monotonic() < until:
            seen.add(app.AsyncResult(job.id).state)
            time.sleep(0.02)

    pollers = [threading.Thread(target=poll) for _ in range(50)]
    for thread in pollers:
        thread.start()
    for thread in pollers:
        thread.join()
    assert seen == {"PENDING"}
    assert 2 <= len(reads) <= 6


def test_end_is_seen_at_once_however_lately_it_was_asked_for(bench: Bench) -> None:
    for task, args, state in ((add, (1, 2), "SUCCESS"), (fail, (), "FAILURE"), (noop, (), "SUCCESS")):
        job = task.delay(*args)
        assert app.AsyncResult(job.id).state == "PENDING"
        bench.work()
        assert app.AsyncResult(job.id).state == state


def test_progress_is_seen_at_once(bench: Bench) -> None:
    job = tells.delay()
    bench.work()
    assert job.get(timeout=5) == [1, 2, 3]


def test_unknown_job_is_asked_for_once_a_second(env: dict[str, str], reads: list[list[str]]) -> None:
    assert {app.AsyncResult("nobody").state for _ in range(20)} == {"PENDING"}
    assert len(reads) == 1


def test_many_jobs_are_asked_for_at_once(bench: Bench, reads: list[list[str]]) -> None:
    ids = [f"job-{n}" for n in range(101)]
    app.backend.mget([keys.result(job_id) for job_id in ids])
    assert reads == [ids]


# ---- replay


@pytest.mark.parametrize("lost", [False, True])
def test_replayed_job_is_waiting_at_once(bench: Bench, db: Conn, cache: Redis, lost: bool) -> None:
    job = fail.delay("once")
    bench.work()
    if lost:
        cache.delete(keys.result(job.id))
    assert app.AsyncResult(job.id).state == "FAILURE"
    manage.replay(db, job.id)
    assert app.AsyncResult(job.id).state == "PENDING"
    db.execute("UPDATE jobs SET state = 'scheduled', available_at = now() + interval '1 hour'")
    results.status.invalidate(job.id)
    assert app.AsyncResult(job.id).state == "RETRY", "the word in the result's place must not hide what the row tells"


def test_reader_that_read_before_a_replay_does_not_bring_the_old_end_back(
    bench: Bench, db: Conn, cache: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = fail.delay("once")
    bench.work()
    cache.flushall()
    read, has_read, may_go_on = results.read, threading.Event(), threading.Event()

    def slow(conn: Conn, job_ids: list[str]) -> Any:
        found = read(conn, job_ids)
        has_read.set()
        may_go_on.wait(10)
        return found

    monkeypatch.setattr(results, "read", slow)
    reader = threading.Thread(target=lambda: app.AsyncResult(job.id).state)
    reader.start()
    assert has_read.wait(10)
    monkeypatch.setattr(results, "read", read)
    manage.replay(db, job.id)
    may_go_on.set()
    reader.join()
    assert app.AsyncResult(job.id).state == "PENDING"


def test_replay_that_is_refused_forgets_nothing(bench: Bench, db: Conn) -> None:
    job = add.delay(1, 2)
    with pytest.raises(ValueError, match="not finished"):
        manage.replay(db, job.id)
    assert db.execute("SELECT count(*) FROM cache_outbox").fetchone() == (0,)


def test_forgotten_result_is_not_told_from_the_cache(bench: Bench, cache: Redis) -> None:
    job = add.delay(1, 2)
    bench.work()
    cache.delete(keys.result(job.id))
    assert app.AsyncResult(job.id).result == 3
    app.AsyncResult(job.id).forget()
    assert app.AsyncResult(job.id).result is None


# ---- what people set


@pytest.fixture
def holdfast(env: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def run(*args: str) -> Any:
        capsys.readouterr()
        assert invoke(list(args)) == 0
        out = capsys.readouterr().out
        return json.loads(out) if "--json" in args else out

    return run


def test_who_pauses_a_queue_and_lists_sees_the_pause(holdfast: Callable[..., Any], db: Conn) -> None:
    for act, paused in (("pause", True), ("resume", False)) * 2:
        holdfast("queues", act, "default")
        assert [row["paused"] for row in holdfast("queues", "ls", "--json")] == [paused]


def test_who_changes_a_schedule_and_lists_sees_the_change(holdfast: Callable[..., Any], db: Conn) -> None:
    def listed() -> dict[str, Any]:
        return {row["name"]: row for row in holdfast("schedules", "ls", "--json")}

    assert listed() == {}
    holdfast("schedules", "add", "s", "maintenance.audit", "--every", "1h")
    assert listed()["s"]["every_s"] == 3600.0
    holdfast("schedules", "pause", "s")
    assert listed()["s"]["enabled"] is False
    holdfast("schedules", "resume", "s")
    db.execute("UPDATE schedules SET next_tick = now()")
    assert listed()["s"]["last_tick"] is None
    beat.tick(app)
    assert listed()["s"]["last_tick"] is not None
    holdfast("schedules", "rm", "s")
    assert listed() == {}


def test_list_through_the_cache_is_the_list(db: Conn) -> None:
    for name, timing in (("a", {"crontab": "0 8 * * mon-fri", "timezone": "Europe/Berlin"}), ("b", {"every_s": 1.5})):
        schedules.add(db, Spec(name, "t", ["x", {"y": None}], {"k": 1}, {"queue": "q"}, **timing))  # type: ignore[arg-type]
    assert schedules.listed() == schedules.list_schedules(db)
    assert schedules.listed() == schedules.list_schedules(db)


def test_settings_are_asked_of_postgres_once(db: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    read = queues._read
    monkeypatch.setattr(queues, "_read", lambda conn: asked.append(1) or read(conn))
    manage.set_paused(db, "default", True)
    for _ in range(20):
        with statement() as conn:
            assert manage.list_queues(conn)[0]["paused"]
    assert len(asked) == 1


def test_pause_inside_a_longer_transaction_is_seen_soon_after_its_commit(db: Conn, relay: Any) -> None:
    assert not manage.list_queues(db)[0]["paused"]
    with db.transaction():
        manage.set_paused(db, "default", True)
    assert eventually(lambda: (relay.invalidate(), manage.list_queues(db)[0]["paused"])[1], 2)


def test_old_result_of_a_replayed_job_is_not_told_once_a_cache_that_was_away_is_back(
    bench: Bench, db: Conn, stack: Stack, conf: Callable[..., None]
) -> None:
    job = add.delay(1, 2)
    bench.work()
    assert job.get(timeout=5) == 3
    stack.cache.freeze()
    conf(cache_timeout_ms=50)
    with statement() as conn:
        manage.replay(conn, job.id)
    stack.cache.thaw()
    conf(cache_timeout_ms=2000)
    db.execute("UPDATE cache_outbox SET created_at = created_at - interval '1 second'")

    def carried_out() -> bool:
        try:
            with statement() as conn:
                return outbox.carry_out_overdue(conn) == 1
        except StoreUnavailable:
            return False

    eventually(carried_out, 10, what="the cache, which was thought away")
    assert app.AsyncResult(job.id).state == "PENDING"
    with statement() as conn:
        assert outbox.owed(conn)[0] == 0


@app.task(name="test.unkept", ignore_result=True)
def unkept() -> int:
    return 1


@app.task(bind=True, name="test.again_by_itself")
def again_by_itself(self: Any) -> int:
    self.retry(countdown=100, throw=False)
    return 5


def test_end_of_a_job_whose_result_is_not_kept_is_seen_within_a_moment(bench: Bench) -> None:
    job = unkept.delay()
    assert job.state == "PENDING"
    bench.work()
    eventually(lambda: job.state == "SUCCESS", 5)


def test_retry_of_a_task_that_returns_is_seen_at_once(bench: Bench) -> None:
    job = again_by_itself.delay()
    assert job.state == "PENDING"
    bench.work()
    assert app.AsyncResult(job.id).state == "RETRY"


def test_outage_of_postgres_leaves_no_long_back_off_of_a_status(bench: Bench, cache: Redis, reads: list[list[str]]) -> None:
    job = add.delay(1, 2)
    cache.set(keys.cache_lease(results.status.key(job.id)), b"!7:60000:LedgerUnavailable: gone", px=75_000)
    for _ in range(50):
        assert app.AsyncResult(job.id).state == "PENDING"
    assert len(reads) <= 2
    assert results.status.terms.back_off_ms(20) <= 1000
