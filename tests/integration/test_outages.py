"""Postgres that drops its clients, or only reads for a while: nobody is told what is not so, and all goes on when it is well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from celery import group
from sqlalchemy import text

from tests import sample_tasks as t
from tests.harness import eventually
from tests.integration.conftest import Bench
from worker.app import app, enqueue_in, enqueue_many
from worker.db import session
from worker.engine.relay import Relay
from worker.errors import LedgerUnavailable, SchemaOutdated
from worker.ledger import manage

Conn = psycopg.Connection[Any]

_OTHERS = (
    "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@app.task(bind=True)
def effect(self: Any) -> bool:
    return bool(self.once("effect"))


def end_all_connections(db: Conn) -> int:
    """End every connection to the database but this one, as a server does that lost patience with idle ones."""
    row = db.execute(_OTHERS).fetchone()
    assert row is not None
    return int(row[0])


def in_own_transaction() -> Any:
    with session() as own, own.begin(), enqueue_in(own):
        return t.add.delay(1, 2)


ENQUEUE: dict[str, Callable[[], Any]] = {
    "delay": lambda: t.add.delay(1, 2),
    "a key": lambda: t.add.apply_async((1, 2), idempotency_key="key"),
    "a unique task": lambda: t.unique.delay(1),
    "a group": lambda: group(t.add.s(i, i) for i in range(3))(),
    "many": lambda: enqueue_many(t.add, [(1, 2), (3, 4)]),
    "the caller's transaction": in_own_transaction,
}


# ---- connections that end while nobody uses them


@pytest.mark.parametrize("how", ENQUEUE)
def test_caller_does_not_notice_that_all_idle_connections_were_ended(how: str, db: Conn, bench: Bench) -> None:
    in_own_transaction()
    t.add.delay(1, 2)
    before = len(bench.ids())
    assert end_all_connections(db) >= 2, "of the pool and of the engine"
    ENQUEUE[how]()
    assert len(bench.ids()) > before


def test_jobs_run_though_all_idle_connections_were_ended_before_each(db: Conn, bench: Bench) -> None:
    ids = [task.delay(*args).id for task, args in ((t.add, (1, 2)), (effect, ()), (t.fail, ()), (effect, ()))]
    for _ in ids:
        assert end_all_connections(db) > 0
        bench.work(most=1)
    states = dict(db.execute("SELECT id, state FROM job_history WHERE attempt = 1").fetchall())
    assert [states[job_id] for job_id in ids] == ["succeeded", "succeeded", "failed", "succeeded"]


def test_relay_and_results_do_not_notice_that_idle_connections_were_ended(db: Conn, bench: Bench, relay: Relay) -> None:
    result = t.add.delay(1, 2)
    bench.redis.flushall()
    end_all_connections(db)
    relay.round()
    assert bench.work() == [result.id]
    end_all_connections(db)
    assert app.AsyncResult(result.id).get(timeout=2) == 3
    app.backend.delete(f"celery-task-meta-{result.id}")
    end_all_connections(db)
    assert app.AsyncResult(result.id).get(timeout=2) == 3


# ---- a server that only reads


@pytest.fixture
def reading_only(db: Conn) -> Iterator[Callable[[bool], None]]:
    """Let the database only be read, also by whoever is connected: `reading_only(True)`."""
    name = db.info.dbname

    def put(on: bool) -> None:
        db.execute("SET default_transaction_read_only = off")
        db.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {"on" if on else "off"}')
        end_all_connections(db)

    yield put
    put(False)
    db.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')


@contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(LedgerUnavailable, match="read-only transaction") as caught:
        yield
    assert not isinstance(caught.value, SchemaOutdated)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ENQUEUE)
def test_server_that_only_reads_is_a_clear_error_and_nothing_is_accepted_until_it_writes(
    how: str, db: Conn, bench: Bench, reading_only: Callable[[bool], None]
) -> None:
    reading_only(True)
    for _ in range(2):
        with refused():
            ENQUEUE[how]()
    assert bench.waiting() == []
    assert db.execute("SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM job_keys)").fetchone() == (0,)
    reading_only(False)
    ENQUEUE[how]()
    assert len(bench.ids()) >= 1


@pytest.fixture
def left_behind(db: Conn, bench: Bench, reading_only: Callable[[bool], None]) -> None:
    """As after a failover: this process has connections to a server that only reads by now; new ones reach one that writes."""
    reading_only(True)
    with session() as own:
        own.execute(text("SELECT 1"))
    app.AsyncResult("none").state  # noqa: B018
    db.execute(f'ALTER DATABASE "{db.info.dbname}" RESET default_transaction_read_only')


def test_caller_does_not_notice_connections_that_were_left_behind_by_a_failover(left_behind: None, bench: Bench) -> None:
    assert t.add.delay(1, 2).id in bench.ids()


def test_job_meets_a_connection_that_was_left_behind_by_a_failover_at_most_once(
    left_behind: None, db: Conn, bench: Bench, relay: Relay
) -> None:
    job = effect.delay()
    for _ in range(3):
        relay.send_due()
        bench.work(most=1)
        eventually(lambda: db.execute("SELECT FROM jobs WHERE state = 'running'").fetchone() is None)
    assert db.execute("SELECT id, state FROM job_history").fetchone() == (job.id, "succeeded")
    assert db.execute("SELECT attempt FROM job_history").fetchone() <= (2,)  # type: ignore[operator]


def test_job_waits_for_a_server_that_writes_and_runs_once(
    db: Conn, bench: Bench, relay: Relay, reading_only: Callable[[bool], None]
) -> None:
    job = effect.delay()
    reading_only(True)
    message = bench.take()
    assert message is not None
    bench.run(message)
    assert relay.round() is False
    assert db.execute("SELECT state, attempt FROM jobs").fetchone() == ("queued", 0)
    reading_only(False)
    db.execute("UPDATE jobs SET dispatched_at = dispatched_at - interval '1 minute'")
    relay.audit()
    relay.send_due()
    assert bench.work() == [job.id]
    assert db.execute("SELECT state, attempt FROM job_history").fetchone() == ("succeeded", 1)


def test_job_that_ends_on_a_server_that_only_reads_by_now_runs_again(
    db: Conn, bench: Bench, relay: Relay, reading_only: Callable[[bool], None]
) -> None:
    @app.task(bind=True, name="tests.fail_over")
    def fail_over(self: Any) -> bool:
        if self.request.holdfast["r"] == 0:
            reading_only(True)
        return bool(self.once("effect"))

    job = fail_over.delay()
    bench.work(most=1)
    assert db.execute("SELECT state FROM jobs").fetchone() == ("running",), "nobody can write that it is not"
    reading_only(False)
    eventually(lambda: db.execute("SELECT state FROM jobs").fetchone() == ("queued",), what="the job given back")
    relay.send_due()
    assert bench.work() == [job.id]
    assert db.execute("SELECT state, attempt FROM job_history").fetchone() == ("succeeded", 2)
    assert db.execute("SELECT count(*) FROM effects").fetchone() == (1,)


def test_results_and_lists_are_read_from_a_server_that_only_reads(
    db: Conn, bench: Bench, reading_only: Callable[[bool], None]
) -> None:
    result = t.add.delay(1, 2)
    bench.work()
    reading_only(True)
    app.backend.delete(f"celery-task-meta-{result.id}")
    assert app.AsyncResult(result.id).get(timeout=2) == 3
    assert [job["id"] for job in manage.list_jobs(db, manage.Filter())] == [result.id]


def test_callers_transaction_meets_a_connection_left_behind_by_a_failover_at_most_once(left_behind: None, bench: Bench) -> None:
    try:
        in_own_transaction()
    except LedgerUnavailable:
        pass
    assert in_own_transaction().id in bench.ids()
