"""Accepting: the row first, then the message; in the caller's transaction when asked; once for a key."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from celery import chain, group
from redis import Redis
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.harness import eventually
from tests.integration.conftest import Bench
from tests.sample_tasks import add, echo, fail, noop, plain, total, unique, unique_on_parity, unique_on_x, unique_retry
from worker.app import app, enqueue_in, enqueue_many
from worker.db import first_row, session, statement
from worker.embedded import Stack
from worker.engine.relay import Relay
from worker.errors import IdempotencyConflict, InvalidJob, LedgerUnavailable
from worker.faults import InjectedFault

Conn = psycopg.Connection[Any]


def jobs(db: Conn) -> list[str]:
    """Return the ids of the living jobs, in order of their acceptance."""
    return [row[0] for row in db.execute("SELECT id FROM jobs ORDER BY created_at, id")]


def column(db: Conn, name: str, job_id: str) -> Any:
    row = db.execute(f"SELECT {name} FROM jobs WHERE id = %s", (job_id,)).fetchone()
    assert row is not None, f"no living job {job_id}"
    return row[0]


def end(job_id: str) -> None:
    """Let a job end, the short way."""
    assert app.control.cancel(job_id)


# ---- the row before the message


def test_row_is_written_before_it_is_committed_or_sent(bench: Bench, db: Conn, fault: Callable[[str], None]) -> None:
    fault("after-insert:raise")
    with pytest.raises(InjectedFault):
        enqueue_many(noop, [()])
    assert jobs(db) == []
    assert bench.waiting() == []


def test_row_is_committed_before_the_message_is_sent(bench: Bench, db: Conn, relay: Relay, fault: Callable[[str], None]) -> None:
    fault("after-commit:raise")
    with pytest.raises(InjectedFault):
        noop.delay()
    (accepted,) = jobs(db)
    assert bench.waiting() == []
    # Whoever dies there has left it to the audit: the row says sent, and the queue is empty.
    db.execute("UPDATE jobs SET dispatched_at = dispatched_at - interval '1 minute'")
    relay.audit()
    relay.send_due()
    assert bench.ids() == [accepted]


def test_delay_leaves_one_row_and_one_message(bench: Bench, db: Conn) -> None:
    result = add.delay(1, 2)
    assert jobs(db) == [result.id]
    (message,) = bench.waiting()
    assert message["headers"]["id"] == result.id
    assert message["headers"]["task"] == "tests.sample_tasks.add"
    assert column(db, "state", result.id) == "queued"
    key = bench.redis.get("holdfast:epoch").decode()  # type: ignore[union-attr]
    assert str(column(db, "dispatch_epoch", result.id)).startswith(f"{key}-"), "it is not marked with this life of the broker"


def test_send_task_and_signature_leave_rows_too(db: Conn, bench: Bench) -> None:
    sent = [app.send_task("tests.sample_tasks.add", (1, 2)).id, add.s(1, 2).apply_async().id, add.si(1, 2).delay().id]
    assert sorted(jobs(db)) == sorted(sent) == sorted(bench.ids())


def test_group_is_accepted_whole_in_one_transaction(db: Conn, bench: Bench) -> None:
    result = group(add.s(i, i) for i in range(20)).apply_async()
    xmins = db.execute("SELECT DISTINCT xmin::text FROM jobs").fetchall()
    assert len(xmins) == 1
    assert sorted(jobs(db)) == sorted(child.id for child in result) == sorted(bench.ids())


def test_chain_sends_its_first_task_only(db: Conn, bench: Bench) -> None:
    result = chain(add.s(1, 2), add.s(3), add.s(4)).apply_async()
    assert jobs(db) == bench.ids() == [result.parent.parent.id]


# ---- servers away


def test_redis_down_changes_nothing_for_the_caller(stack: Stack, db: Conn, bench: Bench, relay: Relay) -> None:
    stack.redis.kill()
    accepted = [add.delay(1, 1).id, *enqueue_many(add, [(1, 1)] * 2), *(child.id for child in group(add.s(1, 1), add.s(2, 2))())]
    assert sorted(jobs(db)) == sorted(accepted)
    stack.redis.start()
    eventually(lambda: relay.round() or sorted(bench.ids()) == sorted(accepted), what="the relay sending what was accepted")


def test_postgres_down_is_a_clear_error_at_once_and_nothing_is_half_done(stack: Stack, env: dict[str, str], bench: Bench) -> None:
    noop.delay()
    stack.postgres.kill()
    for call in (lambda: add.delay(1, 2), lambda: group(add.s(i, i) for i in range(3))(), lambda: enqueue_many(add, [(1, 2)] * 3),
                 lambda: unique.delay(1), lambda: add.apply_async((1, 2), idempotency_key="k")):  # fmt: skip
        started = time.monotonic()
        with pytest.raises(LedgerUnavailable, match="Postgres did not answer"):
            call()
        assert time.monotonic() - started < 2
    stack.postgres.start()
    with psycopg.connect(env["DATABASE_URL"], autocommit=True) as conn:
        assert len(jobs(conn)) == 1
        assert conn.execute("SELECT count(*) FROM job_keys").fetchone() == (0,)
    assert len(bench.waiting()) == 1


def test_dead_connections_of_a_restarted_postgres_are_not_the_callers_trouble(
    stack: Stack, env: dict[str, str], bench: Bench
) -> None:
    noop.delay()
    stack.postgres.restart("immediate")
    assert add.delay(1, 2).id in bench.ids()


def test_task_that_is_not_durable_has_no_row(db: Conn, bench: Bench) -> None:
    result = plain.delay(1)
    assert jobs(db) == []
    assert bench.ids() == [result.id]
    other = add.apply_async((1, 2), durable=False)
    assert jobs(db) == []
    assert bench.ids() == [result.id, other.id]


# ---- in the caller's transaction


def test_job_exists_if_and_only_if_the_callers_transaction_commits(db: Conn, bench: Bench) -> None:
    db.execute("CREATE TABLE orders (id int)")
    with session() as own, own.begin():
        own.execute(text("INSERT INTO orders VALUES (1)"))
        with enqueue_in(own):
            kept = add.delay(1, 2)
        assert jobs(db) == []
        assert bench.waiting() == []
    assert jobs(db) == [kept.id]
    assert bench.ids() == [kept.id]

    with session() as own:
        own.execute(text("INSERT INTO orders VALUES (2)"))
        with enqueue_in(own):
            add.delay(3, 4)
        own.rollback()
    assert jobs(db) == bench.ids() == [kept.id]
    assert db.execute("SELECT id FROM orders").fetchall() == [(1,)]


def test_canvas_and_bulk_join_the_callers_transaction(db: Conn, bench: Bench) -> None:
    def enqueue(own: Session) -> None:
        with enqueue_in(own):
            group(add.s(i, i) for i in range(3)).apply_async()
            (add.s(1, 1) | add.s(2)).apply_async()
            (group(add.s(1, 1), add.s(2, 2)) | total.s()).apply_async()
            enqueue_many(add, [(i, i) for i in range(4)])

    with session() as own:
        enqueue(own)
        own.rollback()
    assert jobs(db) == []
    assert bench.waiting() == []
    assert db.execute("SELECT count(*) FROM chords").fetchone() == (0,)
    with session() as own:
        enqueue(own)
        own.commit()
    assert len(jobs(db)) == 3 + 1 + 2 + 4
    assert sorted(bench.ids()) == sorted(jobs(db))


def test_job_of_a_savepoint_goes_with_it_and_the_others_stay(db: Conn, bench: Bench) -> None:
    with session() as own, own.begin(), enqueue_in(own):
        before = add.delay(1, 1)
        with own.begin_nested():
            inside = add.delay(2, 2)
        assert bench.waiting() == [], "sent at the savepoint, before the commit"
        with own.begin_nested() as part:
            add.delay(3, 3)
            with own.begin_nested():
                add.delay(4, 4)
            part.rollback()
        after = add.delay(5, 5)
    assert sorted(jobs(db)) == sorted([before.id, inside.id, after.id])
    assert bench.ids() == [before.id, inside.id, after.id]


def test_jobs_of_a_session_that_was_closed_are_gone_though_it_goes_on(db: Conn, bench: Bench) -> None:
    own = session()
    with enqueue_in(own):
        add.delay(1, 1)
    own.close()
    with enqueue_in(own):
        kept = add.delay(2, 2)
    own.commit()
    own.close()
    assert jobs(db) == bench.ids() == [kept.id]


def test_job_is_sent_after_the_commit_also_when_the_block_was_left_long_before(db: Conn, bench: Bench) -> None:
    with session() as own:
        with enqueue_in(own):
            first = add.delay(1, 1)
        apart = add.delay(2, 2)
        assert jobs(db) == bench.ids() == [apart.id]
        own.commit()
        assert bench.ids() == [apart.id, first.id]
        with enqueue_in(own):  # the same session again, in its next transaction
            second = add.delay(3, 3)
        own.commit()
    assert bench.ids() == [apart.id, first.id, second.id]


def test_job_of_a_transaction_whose_process_dies_after_the_commit_is_sent_by_the_relay(
    db: Conn, bench: Bench, relay: Relay, fault: Callable[[str], None]
) -> None:
    fault("after-commit:raise")
    with session() as own:
        with enqueue_in(own):
            job = add.delay(1, 1)
        with pytest.raises(InjectedFault):
            own.commit()
    assert jobs(db) == [job.id]
    db.execute("UPDATE jobs SET dispatched_at = dispatched_at - interval '1 minute'")
    relay.audit()
    relay.send_due()
    assert bench.ids() == [job.id]


def test_threads_do_not_join_each_others_transactions(db: Conn, bench: Bench) -> None:
    with session() as own, own.begin():
        with enqueue_in(own), ThreadPoolExecutor(1) as other:
            other.submit(add.delay, 1, 1).result()
            assert len(jobs(db)) == 1
            add.delay(2, 2)
        assert len(jobs(db)) == 1
    assert len(jobs(db)) == 2


# ---- idempotency


def test_same_key_and_payload_is_the_same_job(db: Conn, bench: Bench) -> None:
    first = add.apply_async((1, 2), idempotency_key="order-1")
    again = [add.apply_async((1, 2), idempotency_key="order-1").id for _ in range(3)]
    assert {first.id, *again} == {first.id}
    assert jobs(db) == bench.ids() == [first.id]
    assert column(db, "idempotency_key", first.id) == "order-1"
    end(first.id)
    assert add.apply_async((1, 2), idempotency_key="order-1").id == first.id, "a job of the past is the same job still"
    assert jobs(db) == []


def test_same_key_and_other_payload_is_a_conflict_that_names_the_job(db: Conn, bench: Bench) -> None:
    first = add.apply_async((1, 2), idempotency_key="order-1")
    for call in (
        lambda: add.apply_async((1, 3), idempotency_key="order-1"),
        lambda: echo.apply_async((1, 2), idempotency_key="order-1"),
    ):
        with pytest.raises(IdempotencyConflict, match=f"'order-1'.*{first.id}") as caught:
            call()
        assert caught.value.job_id == first.id  # type: ignore[attr-defined]
    assert jobs(db) == bench.ids() == [first.id]


def test_payload_is_task_and_arguments_whatever_their_order_links_and_moment(db: Conn, bench: Bench) -> None:
    first = echo.apply_async((float("nan"),), {"a": 1, "b": 2}, idempotency_key="k")
    again = echo.apply_async((float("nan"),), {"b": 2, "a": 1}, idempotency_key="k", link=noop.si(), countdown=5)
    assert again.id == first.id
    assert jobs(db) == bench.ids() == [first.id]


def test_same_key_of_another_caller_is_another_job(db: Conn, env: dict[str, str]) -> None:
    ids = {add.apply_async((1, 2), idempotency_key="k", caller=caller).id for caller in ("a", "b", "a", None)}
    assert len(ids) == 3
    assert sorted(jobs(db)) == sorted(ids)


def test_key_is_free_again_after_its_time(db: Conn, env: dict[str, str]) -> None:
    first = add.apply_async((1, 2), idempotency_key="k")
    db.execute("UPDATE job_keys SET expires_at = clock_timestamp() - interval '1 second'")
    second = add.apply_async((5, 5), idempotency_key="k")
    assert second.id != first.id
    assert sorted(jobs(db)) == sorted([first.id, second.id])
    assert add.apply_async((5, 5), idempotency_key="k").id == second.id


def test_key_is_kept_for_the_time_set(db: Conn, conf: Callable[..., None]) -> None:
    conf(idempotency_ttl_s=100)
    add.apply_async((1, 2), idempotency_key="k")
    row = db.execute("SELECT extract(epoch FROM expires_at - clock_timestamp()) FROM job_keys").fetchone()
    assert row is not None
    assert 95 < row[0] <= 100


def test_threads_racing_with_one_key_make_one_job(db: Conn, bench: Bench) -> None:
    for key in map(str, range(5)):
        ids = race(8, lambda key=key: add.apply_async((1, 2), idempotency_key=key).id)  # type: ignore[misc]
        assert len(set(ids)) == 1
    assert len(jobs(db)) == 5
    assert sorted(bench.ids()) == sorted(jobs(db))


def race(threads: int, call: Callable[[], Any]) -> list[Any]:
    """Do it in so many threads at once; return what each got, exceptions included."""
    start = threading.Barrier(threads)

    def run() -> Any:
        start.wait()
        try:
            return call()
        except Exception as exc:
            return exc

    with ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(run) for _ in range(threads)]]


def test_key_of_a_rolled_back_transaction_is_free(db: Conn, bench: Bench) -> None:
    with session() as own:
        with enqueue_in(own):
            lost = add.apply_async((1, 2), idempotency_key="k")
            assert add.apply_async((1, 2), idempotency_key="k").id == lost.id
        own.rollback()
    assert jobs(db) == bench.ids() == []
    with session() as own:
        with enqueue_in(own):
            kept = add.apply_async((3, 4), idempotency_key="k")
        own.commit()
    assert jobs(db) == bench.ids() == [kept.id]
    assert kept.id != lost.id


def test_conflict_inside_the_callers_transaction_leaves_it_usable(db: Conn, bench: Bench) -> None:
    first = add.apply_async((1, 2), idempotency_key="k")
    with session() as own, own.begin(), enqueue_in(own):
        with pytest.raises(IdempotencyConflict):
            add.apply_async((9, 9), idempotency_key="k")
        second = add.delay(1, 1)
    assert sorted(jobs(db)) == sorted([first.id, second.id])


# ---- uniqueness


def test_one_active_job_a_key(db: Conn, bench: Bench) -> None:
    first = unique.delay(1)
    assert unique.delay(1).id == first.id
    assert unique.delay(1, note="other arguments").id != first.id
    assert unique.delay(x=1, note="").id == first.id, "the same call, written otherwise"
    assert len(jobs(db)) == len(bench.ids()) == 2


def test_unique_on_names_the_arguments_that_count(db: Conn, bench: Bench) -> None:
    first = unique_on_x.delay(1, note="a")
    assert unique_on_x.delay(1, note="b").id == first.id
    assert unique_on_x.delay(2, note="a").id != first.id
    odd = unique_on_parity.delay(1)
    assert unique_on_parity.delay(3).id == odd.id
    assert unique_on_parity.delay(2).id != odd.id


def test_racing_threads_make_one_active_job_a_key(db: Conn, bench: Bench) -> None:
    for x in range(5):
        ids = race(16, lambda x=x: unique.delay(x).id)  # type: ignore[misc]
        assert len(set(ids)) == 1, ids
    assert len(jobs(db)) == 5
    assert sorted(bench.ids()) == sorted(jobs(db))


def test_key_is_freed_by_the_end_of_its_job(db: Conn, bench: Bench) -> None:
    first = unique.delay(1)
    bench.work()
    second = unique.delay(1)
    assert second.id != first.id
    end(second.id)
    assert unique.delay(1).id not in (first.id, second.id)


def test_key_is_freed_after_its_time_though_the_job_lives(db: Conn, bench: Bench) -> None:
    first = unique.delay(1)
    db.execute("UPDATE jobs SET unique_until = clock_timestamp() - interval '1 second'")
    second = unique.delay(1)
    assert second.id != first.id
    assert unique.delay(1).id == second.id
    assert sorted(jobs(db)) == sorted([first.id, second.id])


def test_unique_job_may_retry_itself(db: Conn, bench: Bench, relay: Relay) -> None:
    first = unique_retry.delay(1)
    for _ in range(3):
        assert unique_retry.delay(1).id == first.id
        bench.work()
        relay.round()
    assert first.get(timeout=2) == 1
    assert jobs(db) == []
    assert unique_retry.delay(1).id != first.id


def test_unique_key_of_a_rolled_back_transaction_is_free(db: Conn, bench: Bench) -> None:
    with session() as own:
        with enqueue_in(own):
            lost = unique.delay(1)
        own.rollback()
    assert unique.delay(1).id != lost.id
    assert len(jobs(db)) == 1


def test_unique_job_met_inside_a_transaction_is_returned_and_the_transaction_goes_on(db: Conn, bench: Bench) -> None:
    first = unique.delay(1)
    with session() as own, own.begin(), enqueue_in(own):
        assert unique.delay(1).id == first.id
        other = add.delay(1, 1)
    assert sorted(jobs(db)) == sorted([first.id, other.id])


@pytest.mark.timeout(20)
def test_unique_job_that_a_snapshot_cannot_see_is_an_error_not_a_loop(db: Conn, bench: Bench) -> None:
    with session() as own:
        own.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        own.execute(text("SELECT 1 FROM jobs"))
        unique.delay(1)
        with pytest.raises(psycopg.errors.UniqueViolation), enqueue_in(own):
            unique.delay(1)


def test_key_that_meets_an_active_unique_job_stands_for_that_job(db: Conn, bench: Bench) -> None:
    first = unique.delay(1)
    assert [unique.apply_async((1,), idempotency_key="k").id for _ in range(2)] == [first.id, first.id]
    end(first.id)
    assert unique.apply_async((1,), idempotency_key="k").id == first.id


# ---- many at once


def test_enqueue_many_returns_ids_in_the_order_of_the_rows(db: Conn, bench: Bench) -> None:
    ids = enqueue_many(add, [(i, 1) for i in range(50)])
    assert sorted(jobs(db)) == sorted(ids)
    assert bench.ids() == ids
    assert column(db, "args", ids[7]) == "(7, 1)"
    bench.work()
    assert [app.AsyncResult(job_id).get(timeout=2) for job_id in ids] == [i + 1 for i in range(50)]


def test_enqueue_many_takes_mappings_and_options(db: Conn, bench: Bench) -> None:
    ids = enqueue_many(add, [{"x": 1, "y": 2}, [3, 4]], priority=0, caller="importer")
    assert {column(db, "priority", job_id) for job_id in ids} == {0}
    assert {column(db, "caller", job_id) for job_id in ids} == {"importer"}
    bench.work()
    assert [app.AsyncResult(job_id).get(timeout=2) for job_id in ids] == [3, 7]
    assert enqueue_many(add, []) == []


@pytest.mark.filterwarnings("ignore:.*priority.*")  # Celery would rather have routes
@pytest.mark.filterwarnings("ignore:.*'priority' task attribute")  # Celery would rather have routes
def test_enqueue_many_heeds_the_options_of_the_task(db: Conn, bench: Bench) -> None:
    def urgent_body(x: int) -> int:
        return x

    urgent = app.task(name="tests.urgent", priority=0, time_limit=7)(urgent_body)
    (job_id,) = enqueue_many(urgent, [(1,)])
    assert column(db, "priority", job_id) == 0
    assert column(db, "message -> 'headers' -> 'timelimit'", job_id) == [7, None]
    assert column(db, "priority", enqueue_many(urgent, [(1,)], priority=9)[0]) == 9


@pytest.mark.parametrize("bad", [(1, object()), "ab", 7], ids=["not json", "a text", "a number"])
def test_one_bad_row_is_named_and_none_is_accepted(db: Conn, bench: Bench, bad: Any) -> None:
    with pytest.raises(InvalidJob, match="row 2"):
        enqueue_many(add, [(1, 1), (2, 2), bad, (4, 4)])
    assert jobs(db) == bench.ids() == []


def test_enqueue_many_is_all_or_none_when_its_process_dies(db: Conn, bench: Bench, fault: Callable[[str], None]) -> None:
    fault("after-insert:raise")
    with pytest.raises(InjectedFault):
        enqueue_many(add, [(i, i) for i in range(10)])
    assert jobs(db) == bench.ids() == []


# ---- ids, priorities, and what the row keeps


def test_priorities_are_kept_and_served_first_to_last(db: Conn, bench: Bench) -> None:
    given = {priority: add.apply_async((priority, 0), priority=priority).id for priority in (9, 5, 0, 3)}
    default = add.delay(5, 0).id
    assert {priority: column(db, "priority", job_id) for priority, job_id in given.items()} == {p: p for p in given}
    assert column(db, "priority", default) == 5
    assert bench.ids() == [given[0], given[5], given[3], default, given[9]], "Celery has four buckets on Redis: 3 and 5 share one"


def test_id_given_twice_is_one_job(db: Conn, bench: Bench) -> None:
    assert [add.apply_async((1, 2), task_id="mine").id for _ in range(2)] == ["mine", "mine"]
    assert jobs(db) == bench.ids() == ["mine"]


def test_threads_racing_with_one_id_make_one_job(db: Conn, bench: Bench) -> None:
    race(8, lambda: add.apply_async((1, 2), task_id="mine"))
    assert jobs(db) == ["mine"]
    assert bench.ids() == ["mine"]


def test_id_of_a_finished_job_is_not_run_again(db: Conn, bench: Bench) -> None:
    first = add.apply_async((1, 2), task_id="mine")
    bench.work()
    again = add.apply_async((5, 5), task_id="mine")
    assert jobs(db) == bench.ids() == []
    assert first.get(timeout=2) == again.get(timeout=2) == 3


def test_row_keeps_what_the_call_said(db: Conn, bench: Bench) -> None:
    eta = datetime.now(UTC) + timedelta(hours=1)
    expires = eta + timedelta(hours=1)
    result = echo.apply_async(
        (1, "två"),
        {"key": [1]},
        eta=eta,
        expires=expires,
        headers={"x-test": "kept"},
        link=noop.si(),
        link_error=fail.si("callback"),
        priority=3,
        time_limit=30,
        soft_time_limit=20,
        shadow="called-so",
    )
    assert bench.waiting() == [], "a job with an ETA waits in Postgres"
    row = db.execute("SELECT state, available_at, expires_at, args, kwargs, message, root_id, task FROM jobs").fetchone()
    assert row is not None
    assert row[:3] == ("scheduled", eta, expires)
    assert row[3:5] == ("(1, 'två')", "{'key': [1]}")
    message = row[5]
    assert message["headers"]["x-test"] == "kept"
    assert message["headers"]["timelimit"] == [30, 20]
    assert message["headers"]["shadow"] == "called-so"
    assert message["headers"]["id"] == message["properties"]["correlation_id"] == result.id == row[6]
    body = json.loads(message["body"])
    assert body[:2] == [[1, "två"], {"key": [1]}]
    assert [sig["task"] for sig in body[2]["callbacks"]] == ["tests.sample_tasks.noop"]
    assert [sig["task"] for sig in body[2]["errbacks"]] == ["tests.sample_tasks.fail"]


def test_countdown_and_expires_count_from_the_clock_of_postgres(db: Conn, bench: Bench) -> None:
    job = noop.apply_async(countdown=100, expires=300)
    row = db.execute(
        "SELECT extract(epoch FROM available_at - created_at), extract(epoch FROM expires_at - created_at) FROM jobs"
    ).fetchone()
    assert row is not None
    assert row[0] == pytest.approx(100, abs=1)
    assert row[1] == pytest.approx(300, abs=1)
    assert column(db, "state", job.id) == "scheduled"


def test_message_is_sent_again_exactly_as_it_was(db: Conn, bench: Bench, redis: Redis, relay: Relay) -> None:
    unruly = "quote ' \" back\\slash \u0000 \u2028 \U0001f680"
    echo.apply_async(
        (unruly, 1.5, None, 2**63), {"nested": {"a": [1, {"b": unruly}]}}, headers={"x-test": unruly}, link=noop.si()
    )
    (first,) = bench.waiting()
    redis.flushall()
    relay.round()
    (again,) = bench.waiting()
    for message in (first, again):
        message["properties"].pop("delivery_tag")
        message["headers"]["holdfast"].pop("t")
    assert again == first
    assert bench.work()
    assert db.execute("SELECT state, result FROM job_history").fetchone() == (
        "succeeded", [[unruly, 1.5, None, 2**63], {"nested": {"a": [1, {"b": unruly}]}}])  # fmt: skip


def test_connection_on_which_a_transaction_was_undone_takes_the_next_job(env: dict[str, str]) -> None:
    """With a rollback psycopg lets go of what the connection has prepared, ours included."""
    add.delay(1, 2)
    with statement() as conn:
        for _ in range(12):
            conn.execute("SELECT count(*) FROM jobs")
        with conn.transaction(force_rollback=True):
            pass
    job = add.delay(1, 2)
    with statement() as conn, conn.transaction():
        assert first_row(conn, "SELECT id FROM jobs WHERE id = %(id)s", {"id": job.id}) == (job.id,)
