"""Locks of Postgres: held by a transaction, ended with it, waited for with a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from tests.harness import Program, eventually
from worker.db import session
from worker.errors import InvalidLock, LedgerUnavailable, LockBusy, LockReentered
from worker.locks import AdvisoryLock, key_of, picture_of

Conn = psycopg.Connection[Any]

_KEY_IN_SQL = "SELECT ('x' || left(encode(sha256(convert_to(%s, 'UTF8')), 'hex'), 16))::bit(64)::bigint"


@pytest.fixture
def tx(env: dict[str, str]) -> Iterator[Conn]:
    """Another client's transaction."""
    with psycopg.connect(env["DATABASE_URL"]) as conn:
        conn.execute("SELECT 1")
        yield conn
        conn.rollback()


@pytest.mark.parametrize("name", ["report:7", "a", "ünï:☃", "x" * 255])
def test_key_of_a_name_is_what_the_documented_sql_says(db: Conn, name: str) -> None:
    assert db.execute(_KEY_IN_SQL, (name,)).fetchone() == (key_of(name),)
    assert -(2**63) <= key_of(name) < 2**63


def test_lock_is_held_until_its_transaction_ends_either_way(tx: Conn) -> None:
    lock = AdvisoryLock("a")
    for end in ("commit", "rollback"):
        with session() as own:
            lock.acquire(own)
            assert lock.try_acquire(tx) is False
            assert AdvisoryLock("b").try_acquire(tx) is True
            getattr(own, end)()
            assert lock.try_acquire(tx) is True
        tx.rollback()


def test_shared_lock_lets_those_in_who_share_and_keeps_the_others_out(tx: Conn) -> None:
    lock = AdvisoryLock("a")
    with session() as own, own.begin():
        lock.acquire(own, shared=True)
        assert lock.try_acquire(tx, shared=True) is True
        tx.rollback()
        assert lock.try_acquire(tx) is False


def test_waiting_ends_after_its_time_and_leaves_the_transaction_as_it_was(tx: Conn) -> None:
    lock = AdvisoryLock("a")
    lock.acquire(tx)
    with session() as own, own.begin():
        own.execute(text("CREATE TEMP TABLE mine (x int) ON COMMIT DROP"))
        own.execute(text("SET LOCAL lock_timeout = '7s'"))
        started = time.monotonic()
        for wait_s in (0.0, 0.4):
            with pytest.raises(LockBusy) as busy:
                lock.acquire(own, wait_s)
            assert busy.value.name == "a"
        assert 0.4 <= time.monotonic() - started < 5
        own.execute(text("INSERT INTO mine VALUES (1)"))
        assert own.scalar(text("SHOW lock_timeout")) == "7s"
        tx.rollback()
        lock.acquire(own, 5)
        assert own.scalar(text("SHOW lock_timeout")) == "7s"
        assert own.scalar(text("SELECT x FROM mine")) == 1


def test_waiter_is_served_as_soon_as_the_holder_is_done(tx: Conn) -> None:
    lock, waited, timeouts = AdvisoryLock("a"), [], []
    lock.acquire(tx)

    def wait() -> None:
        with session() as own, own.begin():
            own.execute(text("SET LOCAL lock_timeout = '7s'"))
            lock.acquire(own, 30)
            waited.append(time.monotonic())
            timeouts.append(own.scalar(text("SHOW lock_timeout")))

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: len(picture_of("a").in_postgres) == 2, 10)
    assert [row["granted"] for row in picture_of("a").in_postgres] == [True, False]
    released = time.monotonic()
    tx.rollback()
    thread.join(10)
    assert waited[0] - released < 2
    assert timeouts == ["7s"], "waiting changed the timeout of what comes after it"


def test_what_is_written_in_the_block_commits_with_it_and_rolls_back_with_it(db: Conn) -> None:
    db.execute("CREATE TABLE written (x int)")
    with AdvisoryLock("a").hold() as own:
        own.execute(text("INSERT INTO written VALUES (1)"))
    with pytest.raises(ZeroDivisionError), AdvisoryLock("a").hold() as own:  # noqa: PT012
        own.execute(text("INSERT INTO written VALUES (2)"))
        raise ZeroDivisionError
    assert db.execute("SELECT x FROM written").fetchall() == [(1,)]
    db.execute("DROP TABLE written")


def test_thread_that_holds_it_in_a_transaction_of_its_own_is_refused_another_one(tx: Conn) -> None:
    lock = AdvisoryLock("a")
    with lock.hold() as own:
        lock.acquire(own)  # the same transaction may
        with pytest.raises(LockReentered, match="'a'"), lock.hold(30):
            pass
        with AdvisoryLock("b").hold():
            pass
    with lock.hold():
        assert lock.try_acquire(tx) is False


def test_killed_holder_leaves_no_lock_and_no_write(db: Conn, env: dict[str, str]) -> None:
    db.execute("CREATE TABLE written (x int)")
    code = (
        "import time; from sqlalchemy import text; from worker.locks import AdvisoryLock\n"
        "with AdvisoryLock('a').hold() as db:\n"
        "    db.execute(text('INSERT INTO written VALUES (1)')); print('held', flush=True); time.sleep(60)\n"
    )
    with Program("-c", code, name="holder", ready="held") as holder:
        assert [row["granted"] for row in picture_of("a").in_postgres] == [True]
        holder.kill()
        with AdvisoryLock("a").hold(10):
            assert db.execute("SELECT count(*) FROM written").fetchone() == (0,)
    db.execute("DROP TABLE written")


def test_holder_whose_connection_is_ended_cannot_commit_what_it_wrote(db: Conn) -> None:
    db.execute("CREATE TABLE written (x int)")
    with pytest.raises(LedgerUnavailable), AdvisoryLock("a").hold() as own:  # noqa: PT012
        own.execute(text("INSERT INTO written VALUES (1)"))
        db.execute("SELECT pg_terminate_backend(%s)", (own.scalar(text("SELECT pg_backend_pid()")),))
        with AdvisoryLock("a").hold(10):
            pass
        own.execute(text("INSERT INTO written VALUES (2)"))
    assert db.execute("SELECT count(*) FROM written").fetchone() == (0,)
    db.execute("DROP TABLE written")


@pytest.mark.parametrize(
    ("use", "told"),
    [
        (lambda db: AdvisoryLock(""), "name: ''"),
        (lambda db: AdvisoryLock("a").try_acquire(db), "in no transaction"),
        (lambda db: AdvisoryLock("a").acquire(db, -1), "wait_s: -1"),
        (lambda db: AdvisoryLock("a").acquire("db"), "tx: str"),  # type: ignore[arg-type]
        (lambda db: key_of("a\n"), "name: "),
    ],
)
def test_bad_input_is_one_clear_error(db: Conn, use: Callable[[Conn], Any], told: str) -> None:
    with pytest.raises(InvalidLock, match=told):
        use(db)
