"""One idempotency key through several doors at the same moment: one job, none lost, and nobody waits for a stranger's commit."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest

from tests import sample_tasks as tasks
from tests.harness import eventually
from tests.integration.door import ADD, problem
from tests.integration.door import door as door
from tests.integration.door import me as me
from worker.app import app
from worker.engine.calls import Call, accept_calls, new_job
from worker.engine.registry import register_tasks
from worker.errors import KeyInFlight
from worker.ledger.group import Outcome, accept_group

Conn = psycopg.Connection[Any]


@pytest.fixture
def other(env: dict[str, str]) -> Iterator[Conn]:
    """Somebody else's connection, whose transactions stay open for as long as the test likes."""
    app.finalize()
    assert tasks.add.name in app.tasks
    register_tasks(app)
    with psycopg.connect(env["DATABASE_URL"], autocommit=True) as conn:
        conn.execute("SET deadlock_timeout = '60s'")  # it is the other side that finds out
        yield conn


def by_sql(conn: Conn, key: str, **more: str) -> str:
    named = "".join(f", {name} => %({name})s" for name in more)
    row = conn.execute(f"SELECT holdfast.enqueue('{ADD}', '[1, 2]', key => %(key)s{named})", {"key": key, **more}).fetchone()
    assert row is not None
    return str(row[0])


def call(key: str | None = None, **more: Any) -> Call:
    return Call(ADD, [1, 2], idempotency_key=key, **more)


def handed_in(*calls: Call) -> list[Outcome]:
    told: list[Outcome] = []
    accept_group([new_job(app, one) for one in calls], told.extend)
    return told


def waits(db: Conn) -> bool:
    found = db.execute("SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
    return found.rowcount > 0


def test_two_that_take_the_same_keys_the_other_way_round_both_go_on(other: Conn, db: Conn) -> None:
    with ThreadPoolExecutor(1) as pool:
        with other.transaction():
            second = by_sql(other, "two")
            found = pool.submit(accept_calls, app, [call("one"), call("two")])
            eventually(lambda: waits(db), what="waiting for the key")
            first = by_sql(other, "one")
        assert found.result(30) == [first, second]
    assert db.execute("SELECT count(*) FROM jobs").fetchone() == (2,)


@pytest.mark.parametrize("more", [{"key": "held"}, {"unique": "held"}], ids=["idempotency key", "unique key"])
def test_group_does_not_wait_for_a_key_that_an_open_transaction_holds(other: Conn, db: Conn, more: dict[str, str]) -> None:
    mine = {"key": "mine"} if "unique" in more else {}
    with other.transaction():
        held = by_sql(other, **{"key": "theirs", **{"unique_key" if n == "unique" else n: v for n, v in more.items()}})
        plain, busy, keyed = handed_in(call(), call(**more, **mine), call("free"))
        assert isinstance(busy, KeyInFlight)
    assert {plain, keyed} <= {row[0] for row in db.execute("SELECT id FROM jobs").fetchall()}
    assert handed_in(call(**more, **mine)) == [held]


def test_gateway_serves_others_while_a_transaction_holds_the_key_of_one(other: Conn, me: httpx.Client) -> None:
    body = {"task": ADD, "args": [1, 2]}
    with other.transaction():
        held = by_sql(other, "held", caller="me")
        busy = me.post("/v1/jobs", json=body, headers={"Idempotency-Key": "held"})
        problem(busy, 409, "idempotency_in_flight", "idempotency_key")
        assert me.post("/v1/jobs", json=body).status_code == 202
    assert me.post("/v1/jobs", json=body, headers={"Idempotency-Key": "held"}).json()["id"] == held


def test_key_of_a_transaction_that_is_rolled_back_is_free_for_who_waits(other: Conn, db: Conn) -> None:
    with ThreadPoolExecutor(1) as pool:
        with other.transaction(force_rollback=True):
            gone = by_sql(other, "one")
            found = pool.submit(accept_calls, app, [call("one")])
            eventually(lambda: waits(db), what="waiting for the key")
        (kept,) = found.result(30)
    assert kept != gone
    assert db.execute("SELECT array_agg(id) FROM jobs").fetchone() == ([kept],)


def test_one_key_through_every_door_at_once_is_one_job(other: Conn, env: dict[str, str], db: Conn) -> None:
    start = threading.Barrier(6)

    def sql() -> str:
        with psycopg.connect(env["DATABASE_URL"]) as conn:
            start.wait()
            found = by_sql(conn, "same")
            time.sleep(0.05)
        return found

    def group() -> str:
        start.wait()
        (found,) = handed_in(call("same"))
        assert isinstance(found, str)
        return found

    def python() -> str:
        start.wait()
        return accept_calls(app, [call("same")])[0]

    with ThreadPoolExecutor(6) as pool:
        found = {future.result(30) for future in [pool.submit(door) for door in (sql, group, python) * 2]}
    assert db.execute("SELECT array_agg(id) FROM jobs").fetchone() == (list(found),)
