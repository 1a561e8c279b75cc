"""The lock a task declares: what its job does that finds it held, what it may rely on, what is left of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from redis import Redis
from sqlalchemy import text

from tests.harness import eventually
from tests.integration.conftest import Bench
from worker.app import app
from worker.embedded import Stack
from worker.engine.relay import Relay
from worker.engine.task import Task
from worker.errors import InvalidLock, StoreUnavailable
from worker.locks import AdvisoryLock, Lock, picture_of
from worker.locks import held as held_locks
from worker.store import keys

Conn = psycopg.Connection[Any]

#: What a body does; each test sets its own.
_body: Callable[[Any], Any] = lambda task: None  # noqa: E731


@app.task(bind=True, lock="report:{args[0]}")
def snoozing(self: Any, number: Any) -> Any:
    return _body(self)


@app.task(bind=True, lock="report:{args[0]}", on_busy="skip")
def skipping(self: Any, number: int) -> Any:
    return _body(self)


@app.task(bind=True, lock="report:{args[0]}", on_busy="wait", lock_wait_s=1.0)
def waiting(self: Any, number: int) -> Any:
    return _body(self)


@app.task(bind=True, lock="account:{kwargs[account]}", lock_backend="postgres")
def in_postgres(self: Any, account: int) -> Any:
    return _body(self)


@app.task(bind=True, lock="account:{kwargs[account]}", lock_backend="postgres", on_busy="wait", lock_wait_s=20.0)
def waiting_in_postgres(self: Any, account: int) -> Any:
    return _body(self)


@app.task(bind=True, lock="report:{args[0]}", max_retries=3)
def retrying(self: Any, number: int) -> None:
    raise self.retry(countdown=0)


@pytest.fixture(autouse=True)
def _fresh(env: dict[str, str]) -> Iterator[None]:
    yield
    does(lambda task: None)
    held_locks._thread.holds.clear()


def does(body: Callable[[Any], Any]) -> None:
    """Let the bodies of this module's tasks do this."""
    global _body
    _body = body


def row(db: Conn, job_id: str) -> tuple[Any, ...]:
    """Return state, attempt and error of a job that has not ended."""
    found = db.execute("SELECT state, attempt, error FROM jobs WHERE id = %s", (job_id,)).fetchone()
    assert found, "it has ended"
    return found


def past(db: Conn, job_id: str) -> tuple[Any, ...]:
    """Return state, attempts and error of a job that has ended."""
    found = db.execute("SELECT state, attempt, error FROM job_history WHERE id = %s", (job_id,)).fetchone()
    assert found, "it has not ended"
    return found


def nothing_is_held(redis: Redis, name: str) -> bool:
    found = picture_of(name)
    return not (found.holders or found.waiting or found.in_postgres or redis.exists(keys.lock(name)))


def hold_elsewhere(name: str) -> Callable[[], None]:
    """Hold a lock as somebody else, and return what ends that."""
    done, held = threading.Event(), threading.Event()

    def hold() -> None:
        with Lock(name, 20).acquire():
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)

    def end() -> None:
        done.set()
        thread.join(10)

    return end


# ---- who finds it free


def test_body_runs_under_the_lock_and_gives_it_up_with_the_end_of_the_job(bench: Bench, redis: Redis) -> None:
    seen: list[Any] = []
    does(lambda task: seen.append((task.held_lock.fence, picture_of("report:7").holders[0].holder)))
    jobs = [snoozing.delay(7), snoozing.delay(7)]
    bench.work()
    assert [holder for _, holder in seen] == [f"job:{job.id}" for job in jobs]
    assert seen[0][0] < seen[1][0]
    assert nothing_is_held(redis, "report:7")


@pytest.mark.parametrize("raised", [ValueError("no"), SoftTimeLimitExceeded(), SystemExit(1)])
def test_lock_is_given_up_however_the_body_ends(bench: Bench, redis: Redis, raised: BaseException) -> None:
    def fail(task: Any) -> None:
        assert not nothing_is_held(redis, "report:7")
        raise raised

    does(fail)
    snoozing.delay(7)
    message = bench.take()
    assert message
    try:
        bench.run(message)
    except SystemExit:
        pass
    assert nothing_is_held(redis, "report:7")


def test_retry_gives_the_lock_up_until_it_runs_again(bench: Bench, db: Conn, redis: Redis) -> None:
    job = retrying.delay(7)
    bench.run(bench.take() or {})
    assert row(db, job.id)[:2] == ("queued", 1)
    assert nothing_is_held(redis, "report:7")


# ---- who finds it held


def test_snoozed_job_comes_back_without_an_attempt_and_runs_when_the_lock_is_free(
    bench: Bench, db: Conn, relay: Relay, redis: Redis, conf: Callable[..., None]
) -> None:
    conf(lock_snooze_s=0.2)
    end = hold_elsewhere("report:7")
    job = snoozing.delay(7)
    for _ in range(3):
        bench.work()
        state, attempt, error = row(db, job.id)
        assert (state, attempt, error) == ("scheduled", 0, "waits for lock 'report:7'")
        assert db.execute("SELECT count(*) FROM attempts").fetchone() == (0,)
        assert not redis.exists(keys.job_lock(job.id)), "the job's own lock was left"
        eventually(lambda: relay.round() or bench.ids(), 10)
    end()
    bench.work()
    assert past(db, job.id)[:2] == ("succeeded", 1)


def test_skipped_job_is_cancelled_and_says_why(bench: Bench, db: Conn) -> None:
    end = hold_elsewhere("report:7")
    job, other = skipping.delay(7), skipping.delay(8)
    bench.work()
    end()
    assert past(db, job.id)[::2] == ("cancelled", "skipped: lock 'report:7' is held")
    assert past(db, other.id)[0] == "succeeded"
    assert job.status == "REVOKED"


def test_waiting_job_runs_as_soon_as_the_lock_is_free_and_is_snoozed_after_its_time(bench: Bench, db: Conn) -> None:
    end = hold_elsewhere("report:7")
    job = waiting.delay(7)
    threading.Timer(0.3, end).start()
    bench.work()
    assert past(db, job.id)[0] == "succeeded"
    end = hold_elsewhere("report:7")
    job, started = waiting.delay(7), time.monotonic()
    bench.work()
    end()
    assert row(db, job.id)[:2] == ("scheduled", 0)
    assert time.monotonic() - started >= 1.0


def test_snoozed_job_can_be_cancelled_and_expires(bench: Bench, db: Conn, relay: Relay) -> None:
    end = hold_elsewhere("report:7")
    cancelled, expired = snoozing.delay(7), snoozing.apply_async((7,), expires=0.5)
    bench.work()
    assert row(db, cancelled.id)[0] == row(db, expired.id)[0] == "scheduled"
    cancelled.revoke()
    assert past(db, cancelled.id)[0] == "cancelled"
    eventually(lambda: relay.expire() or db.execute("SELECT 1 FROM job_history WHERE id = %s", (expired.id,)).fetchone(), 10)
    assert past(db, expired.id)[0] == "expired"
    end()


# ---- loss and outages


def test_job_whose_lock_is_lost_is_rolled_back_and_runs_again(
    bench: Bench, db: Conn, redis: Redis, conf: Callable[..., None]
) -> None:
    conf(lease_s=1.5)
    db.execute("CREATE TABLE written (attempt int)")

    def write(task: Any) -> None:
        task.session.execute(text("INSERT INTO written SELECT attempt FROM jobs WHERE id = :id"), {"id": task.request.id})
        if task.request.delivery_info and db.execute("SELECT attempt FROM jobs").fetchone() == (1,):
            redis.delete(keys.lock("report:7"))
            assert task.held_lock.lost.wait(5)

    does(write)
    job = snoozing.delay(7)
    bench.run(bench.take() or {})
    assert row(db, job.id)[:2] == ("queued", 1)
    assert "lock 'report:7' was lost" in row(db, job.id)[2]
    db.execute("UPDATE jobs SET dispatch_epoch = NULL")
    eventually(lambda: Relay(app).round() or bench.ids(), 10)
    bench.work()
    assert past(db, job.id)[0] == "succeeded"
    assert db.execute("SELECT attempt FROM written").fetchall() == [(2,)]
    db.execute("DROP TABLE written")


@pytest.mark.parametrize("task", [snoozing, skipping, waiting])
def test_job_is_put_off_while_redis_is_away_whatever_it_does_when_busy(
    bench: Bench, db: Conn, stack: Stack, task: Task, relay: Relay
) -> None:
    job = task.delay(7)
    message = bench.take()
    stack.redis.kill()
    bench.run(message or {})
    assert row(db, job.id) == ("scheduled", 0, "waits for Redis, to take lock 'report:7'")
    stack.redis.start()
    eventually(lambda: _round(relay) or bench.ids(), 15)
    bench.work()
    assert past(db, job.id)[0] == "succeeded"


def _round(relay: Relay) -> None:
    try:
        relay.round()
    except StoreUnavailable:
        pass


# ---- the lock of Postgres


def test_lock_of_postgres_is_held_by_the_transaction_that_commits_the_job(bench: Bench, db: Conn, stack: Stack) -> None:
    seen: list[Any] = []
    does(lambda task: seen.append([row["granted"] for row in picture_of("account:1").in_postgres]))
    job = in_postgres.delay(account=1)
    bench.work()
    assert past(db, job.id)[0] == "succeeded"
    assert seen == [[True]]
    assert not picture_of("account:1").in_postgres


def test_lock_of_postgres_is_waited_for_or_snoozed_on_without_redis(bench: Bench, db: Conn, stack: Stack) -> None:
    job, waits = in_postgres.delay(account=1), waiting_in_postgres.delay(account=1)
    messages = [bench.take(), bench.take()]
    stack.redis.kill()
    with AdvisoryLock("account:1").hold():
        bench.run(messages[0] or {})
        assert row(db, job.id) == ("scheduled", 0, "waits for lock 'account:1'")
        thread = threading.Thread(target=lambda: bench.run(messages[1] or {}))
        thread.start()
        eventually(lambda: len(picture_rows(db)) == 2, 10)
    thread.join(20)
    assert past(db, waits.id)[0] == "succeeded"


def picture_rows(db: Conn) -> list[Any]:
    return db.execute("SELECT granted FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1").fetchall()


def test_body_that_rolls_back_goes_on_under_the_lock_or_not_at_all(bench: Bench, db: Conn) -> None:
    held: list[bool] = []

    def roll_back(task: Any) -> None:
        task.session.rollback()
        task.session.execute(text("SELECT 1"))
        with db.transaction():
            held.append(not AdvisoryLock("account:1").try_acquire(db))

    does(roll_back)
    job = in_postgres.delay(account=1)
    bench.work()
    assert held == [True]
    assert past(db, job.id)[0] == "succeeded"

    def lose(task: Any) -> None:
        task.session.rollback()
        with AdvisoryLock("account:1").hold():
            task.session.execute(text("SELECT 1"))

    does(lose)
    job = in_postgres.delay(account=1)
    bench.work()
    assert past(db, job.id)[0] == "failed"
    assert "went to another" in past(db, job.id)[2]


# ---- bad input


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lock": ""}, "lock: ''"),
        ({"lock": "a:{nobody}"}, "names 'nobody'"),
        ({"lock": "a:{args[x]}"}, r"args\[0\]"),
        ({"lock": 7}, "lock: 7"),
        ({"lock": "a", "lock_backend": "zookeeper"}, "lock_backend: 'zookeeper' is none of redis, postgres"),
        ({"lock": "a", "on_busy": "panic"}, "on_busy: 'panic' is none of snooze, wait, skip"),
        ({"lock": "a", "lock_wait_s": -1}, "lock_wait_s: -1"),
        ({"lock": "a", "durable": False}, "not durable"),
    ],
)
def test_bad_option_is_one_clear_error_when_the_task_is_declared(env: dict[str, str], options: dict[str, Any], told: str) -> None:
    name = f"tests.bad_lock_{abs(hash(str(options)))}"
    app.finalize()
    try:
        with pytest.raises(InvalidLock, match=f"^{name}: .*{told}"):
            app.task(name=name, shared=False, **options)(nothing).delay  # noqa: B018 - a task is made when it is first used
    finally:
        app.tasks.pop(name, None)


def nothing() -> None: ...


def test_call_that_lacks_what_names_the_lock_fails_and_says_so(bench: Bench, db: Conn) -> None:
    job = snoozing.delay(None)
    bench.work()
    state, _, error = past(db, job.id)
    assert state == "failed"
    assert "its lock goes by report:{args[0]}, which this call does not have" in error


def test_lock_finds_an_argument_by_place_and_by_name(bench: Bench, db: Conn) -> None:
    names: list[str] = []
    does(lambda task: names.append(task.held_lock.name))
    for args, kwargs in (((7,), {}), ((), {"number": 7})):
        snoozing.apply_async(args, kwargs)
    bench.work()
    assert names == ["report:7"] * 2


def test_long_argument_makes_a_lock_of_its_own(bench: Bench, db: Conn) -> None:
    names: list[str] = []
    does(lambda task: names.append(task.held_lock.name))
    for end in "ab":
        snoozing.delay("x" * 400 + end)
    bench.work()
    assert len(set(names)) == 2
    assert all(len(name) <= 255 for name in names)
