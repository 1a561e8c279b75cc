"""Dispatch: the window, the order, pauses, expiry, and what is sent again after a loss; each relay round driven by hand."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from celery import group
from redis import Redis

from tests.harness import eventually
from tests.integration.conftest import Bench
from tests.sample_tasks import add, noop
from worker import faults
from worker.app import app, enqueue_many
from worker.db import statement
from worker.embedded import Stack
from worker.engine.relay import Relay
from worker.ledger import manage
from worker.store import keys

Conn = psycopg.Connection[Any]
Conf = Callable[..., None]

#: A job put in by SQL alone, as a trigger or another language would.
INSERT = """
INSERT INTO jobs (id, task, queue, state, message)
SELECT %(prefix)s || n, 'tests.sample_tasks.add', 'default', 'queued', json_build_object(
         'headers', json_build_object('task', 'tests.sample_tasks.add', 'id', %(prefix)s || n),
         'properties', json_build_object('correlation_id', %(prefix)s || n),
         'body', format('[[%%s, 1], {}, {}]', n), 'content-type', 'application/json', 'content-encoding', 'utf-8')
  FROM generate_series(1, %(count)s) AS n
"""


def insert(db: Conn, count: int, prefix: str = "sql-") -> None:
    db.execute(INSERT, {"prefix": prefix, "count": count})


def state(db: Conn, job_id: str) -> str:
    row = db.execute(
        "SELECT state FROM jobs WHERE id = %(id)s UNION ALL SELECT state FROM job_history WHERE id = %(id)s", {"id": job_id}
    ).fetchone()
    assert row is not None
    return str(row[0])


def pause(queue: str, paused: bool = True) -> None:
    with statement() as conn:
        manage.set_paused(conn, queue, paused)


def lengths(redis: Redis) -> int:
    return sum(redis.llen(key) for key in keys.queue_lists("default"))  # type: ignore[misc]


def age(db: Conn, seconds: float = 60) -> None:
    """Make everything sent seem sent so long ago."""
    db.execute("UPDATE jobs SET dispatched_at = dispatched_at - %s * interval '1 second'", (seconds,))


# ---- the window


def test_window_bounds_what_lies_in_redis_and_the_backlog_drains_through_it(
    db: Conn, bench: Bench, relay: Relay, conf: Conf
) -> None:
    conf(window=20)
    insert(db, 300)
    done: list[str] = []
    while True:
        relay.round()
        assert lengths(bench.redis) <= 20
        ran = bench.work(most=15)
        if not ran:
            break
        done += ran
    assert len(done) == len(set(done)) == 300
    assert db.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


def test_window_holds_also_for_those_who_enqueue(db: Conn, bench: Bench, relay: Relay, conf: Conf) -> None:
    conf(window=10)
    for i in range(30):
        add.delay(i, i)
    assert lengths(bench.redis) <= 11
    enqueue_many(add, [(i, i) for i in range(100)])
    assert lengths(bench.redis) <= 11
    relay.round()
    assert lengths(bench.redis) <= 11
    assert db.execute("SELECT count(*) FROM jobs").fetchone() == (130,)


def test_full_queue_is_left_to_the_relay_however_long_it_stays_full(bench: Bench, conf: Conf, relay: Relay) -> None:
    conf(window=5)
    deadline = time.monotonic() + 1.6
    while time.monotonic() < deadline:
        add.delay(1, 1)
        time.sleep(0.02)
    assert lengths(bench.redis) <= 6


def test_large_group_fills_the_window_and_no_more(db: Conn, bench: Bench, conf: Conf, relay: Relay) -> None:
    conf(window=10)
    group(add.s(i, i) for i in range(60))()
    assert lengths(bench.redis) <= 10
    done: list[str] = []
    while ran := bench.work(most=8):
        done += ran
        relay.round()
    assert len(set(done)) == len(done) == 60


def test_window_of_one_queue_may_be_set_apart(db: Conn, bench: Bench, relay: Relay) -> None:
    db.execute("INSERT INTO queues (name, \"window\") VALUES ('default', 3)")
    insert(db, 10)
    relay.round()
    assert lengths(bench.redis) == 3


# ---- order


def test_backlog_is_served_by_priority_then_age(db: Conn, bench: Bench, relay: Relay, conf: Conf) -> None:
    conf(window=4)
    insert(db, 40)
    db.execute("UPDATE jobs SET priority = (substr(id, 5)::int * 7) % 10, available_at = clock_timestamp() - interval '1 hour' "
               "+ substr(id, 5)::int * interval '1 second'", prepare=False)  # fmt: skip
    expected = [row[0] for row in db.execute("SELECT id FROM jobs ORDER BY priority, available_at")]
    done: list[str] = []
    while True:
        relay.round()
        if not (ran := bench.work(most=4)):
            break
        done += ran
    assert done == expected


def test_urgent_job_overtakes_a_backlog(db: Conn, bench: Bench, relay: Relay, conf: Conf) -> None:
    conf(window=5)
    insert(db, 50)
    relay.round()
    urgent = add.apply_async((1, 1), priority=0).id
    ran = bench.work(most=5)
    relay.round()
    ran += bench.work(most=2)
    assert urgent in ran


# ---- pauses


def test_pause_acts_at_once_also_on_what_is_sent_and_resume_sends_it_again(db: Conn, bench: Bench, relay: Relay) -> None:
    sent = [add.delay(i, 1).id for i in range(3)]
    pause("default")
    later = add.delay(9, 1).id
    assert len(bench.work()) >= 3, "workers take the messages"
    assert {state(db, job_id) for job_id in [*sent, later]} == {"queued"}, "and leave the jobs alone"
    for _ in range(3):
        relay.round()
    assert bench.waiting() == []
    pause("default", False)
    relay.round()
    assert sorted(bench.ids()) == sorted([*sent, later])
    bench.work()
    assert {state(db, job_id) for job_id in [*sent, later]} == {"succeeded"}


def test_pause_and_resume_with_the_messages_still_waiting_runs_each_job_once(db: Conn, bench: Bench, relay: Relay) -> None:
    sent = [add.delay(i, 1).id for i in range(3)]
    for paused in (True, False, True, False):
        pause("default", paused)
        relay.round()
    bench.work()
    assert db.execute("SELECT id, attempt FROM job_history ORDER BY id").fetchall() == [(job_id, 1) for job_id in sorted(sent)]


def test_scheduled_jobs_of_a_paused_queue_wait_as_well(db: Conn, bench: Bench, relay: Relay) -> None:
    pause("default")
    job = add.apply_async((1, 1), countdown=0.05)
    time.sleep(0.1)
    relay.round()
    assert bench.waiting() == []
    pause("default", False)
    relay.round()
    assert bench.ids() == [job.id]


# ---- time


def test_job_is_sent_when_it_is_due_and_not_before(db: Conn, bench: Bench, relay: Relay) -> None:
    soon, late = add.apply_async((1, 1), countdown=0.3), add.apply_async((1, 1), countdown=60)
    relay.round()
    assert bench.waiting() == []
    eventually(lambda: relay.round() or bench.ids(), timeout=5)
    assert bench.ids() == [soon.id]
    assert state(db, late.id) == "scheduled"


def test_waiting_job_expires_wherever_it_waits(db: Conn, bench: Bench, relay: Relay) -> None:
    sent, scheduled = add.apply_async((1, 1), expires=60), add.apply_async((1, 1), countdown=30, expires=60)
    kept = add.apply_async((1, 1), expires=3600)
    db.execute("UPDATE jobs SET expires_at = clock_timestamp() - interval '1 second' WHERE id <> %s", (kept.id,))
    relay.expire()
    assert [state(db, job.id) for job in (sent, scheduled, kept)] == ["expired", "expired", "queued"]
    assert sent.state == scheduled.state == "REVOKED"
    bench.work()
    assert state(db, sent.id) == "expired", "its message is dropped"
    assert state(db, kept.id) == "succeeded"


def test_expired_job_is_not_claimed_before_the_relay_has_seen_it(db: Conn, bench: Bench) -> None:
    job = add.apply_async((1, 1), expires=60)
    db.execute("UPDATE jobs SET expires_at = clock_timestamp() - interval '1 second'")
    bench.work()
    assert state(db, job.id) == "queued"


# ---- losses


def test_broker_that_lost_its_memory_gets_everything_again(db: Conn, bench: Bench, relay: Relay, redis: Redis) -> None:
    relay.round()
    sent = [add.delay(i, 1).id for i in range(10)]
    redis.flushall()
    relay.round()
    assert sorted(bench.ids()) == sorted(sent)
    assert redis.get("holdfast:epoch") is not None


def test_accept_under_an_epoch_that_is_gone_is_sent_again(db: Conn, bench: Bench, relay: Relay, redis: Redis) -> None:
    relay.round()
    add.delay(1, 1)
    redis.flushall()
    job = add.delay(2, 2)  # this process trusts the epoch it saw a moment ago
    relay.round()
    assert job.id in bench.ids()
    bench.work()
    assert db.execute("SELECT count(*), max(attempt) FROM job_history").fetchone() == (2, 1)


def test_redis_restarted_without_its_disk_gets_everything_again(db: Conn, stack: Stack, bench: Bench, relay: Relay) -> None:
    sent = [add.delay(i, 1).id for i in range(5)]
    stack.redis.restart(without_disk=True)
    eventually(lambda: relay.round() or sorted(bench.ids()) == sorted(sent), timeout=10)


def test_loss_while_a_window_is_filled_does_not_fill_it_with_the_same_jobs(
    db: Conn, bench: Bench, relay: Relay, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(db, 1600)
    sent: list[int] = []

    def flush_once(point: str) -> None:
        if point == faults.AFTER_PUBLISH and not sent:
            sent.append(lengths(redis))
            redis.flushall()

    monkeypatch.setattr(faults, "point", flush_once)
    relay.send_due()
    relay.send_due()
    messages = Counter(bench.ids())
    assert sent == [500]
    assert len(messages) >= 1500, "what was lost and what was not sent yet"
    assert messages.total() - len(messages) <= 500, "only what went out beside the loss came twice"


def test_lost_message_is_noticed_and_its_job_sent_again(db: Conn, bench: Bench, relay: Relay) -> None:
    lost, kept = add.delay(1, 1), add.delay(2, 2)
    message = bench.take()
    assert message is not None
    assert message["headers"]["id"] == lost.id
    relay.audit()
    relay.send_due()
    assert bench.ids() == [kept.id], "too early to tell"
    bench.work()
    age(db)
    relay.audit()
    relay.send_due()
    assert bench.ids() == [lost.id]
    bench.work()
    assert db.execute("SELECT count(*), max(attempt) FROM job_history").fetchone() == (2, 1)


def test_lost_message_leaves_no_lock_that_keeps_its_job_waiting(db: Conn, bench: Bench, relay: Relay, redis: Redis) -> None:
    """A worker killed between taking a message with its lock and claiming the job."""
    lost = add.delay(1, 1)
    assert bench.take()
    redis.set(keys.job_lock(lost.id), "dead", px=60_000)
    age(db)
    waiting = add.delay(2, 2)
    redis.set(keys.job_lock(waiting.id), "another", px=60_000)
    relay.audit()
    assert redis.exists(keys.job_lock(waiting.id)), "its message is there still"
    relay.send_due()
    bench.work()
    assert state(db, lost.id) == "succeeded"


def test_lost_message_is_noticed_while_younger_ones_wait(db: Conn, bench: Bench, relay: Relay) -> None:
    lost = add.delay(1, 1)
    bench.take()
    age(db)
    kept = [add.delay(i, i).id for i in range(3)]
    relay.audit()
    relay.send_due()
    assert bench.ids() == [*kept, lost.id]


def test_waiting_messages_are_not_sent_again_however_long_they_wait(db: Conn, bench: Bench, relay: Relay, conf: Conf) -> None:
    conf(audit_after_s=0.1)
    sent = [add.apply_async((i, 1), priority=priority).id for i, priority in enumerate((0, 0, 5, 5, 9))]
    for _ in range(12):
        time.sleep(0.1)
        relay.audit()
        relay.send_due()
    assert sorted(bench.ids()) == sorted(sent)


def test_foreign_message_at_the_head_of_a_queue_does_not_blind_the_audit_into_doubles(
    db: Conn, bench: Bench, relay: Relay, redis: Redis
) -> None:
    redis.rpush(keys.queue("default", 5), b"not ours")
    job = add.delay(1, 1)
    age(db)
    relay.audit()
    relay.send_due()
    assert lengths(redis) == 2
    assert state(db, job.id) == "queued"


# ---- more than one relay


def test_two_relays_side_by_side_send_each_job_once(db: Conn, bench: Bench, relay: Relay) -> None:
    insert(db, 1500)
    start = threading.Barrier(2)

    def work(which: Relay) -> None:
        start.wait()
        while which.round():
            pass

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(work, which) for which in (relay, Relay(app))]:
            future.result()
    relay.round()
    counts = Counter(bench.ids())
    assert len(counts) == 1500
    assert set(counts.values()) == {1}


def test_two_relays_side_by_side_end_an_expired_job_once(db: Conn, relay: Relay, bench: Bench) -> None:
    for _ in range(20):
        add.apply_async((1, 1), expires=60)
    db.execute("UPDATE jobs SET expires_at = clock_timestamp() - interval '1 second'")
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(which.expire) for which in (relay, Relay(app))]:
            future.result()
    assert db.execute("SELECT count(*), count(DISTINCT id) FROM job_history WHERE state = 'expired'").fetchone() == (20, 20)


# ---- rows from elsewhere


def test_row_inserted_by_sql_is_sent_and_runs(db: Conn, bench: Bench, relay: Relay) -> None:
    insert(db, 2)
    relay.round()
    assert sorted(bench.work()) == ["sql-1", "sql-2"]
    assert app.AsyncResult("sql-2").get(timeout=2) == 3


BROKEN = {
    "no parts": {}, "a list": [1], "headers that are a list": {"headers": [], "properties": {}, "body": "[[],{},{}]"},
    "no body": {"headers": {"task": "tests.sample_tasks.add", "id": "broken"}, "properties": {}},
    "a body that is no JSON": {"headers": {"task": "tests.sample_tasks.add", "id": "broken"}, "properties": {}, "body": "{",
                               "content-type": "application/json", "content-encoding": "utf-8"},
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_row_inserted_by_sql_is_set_aside_and_holds_nobody_up(case: str, db: Conn, bench: Bench, relay: Relay) -> None:
    db.execute("INSERT INTO jobs (id, task, queue, state, message, priority) VALUES ('broken', 'x', 'default', 'queued', %s, 0)",
               (json.dumps(BROKEN[case]),))  # fmt: skip
    insert(db, 2)
    for _ in range(3):
        relay.round()
    assert sorted(bench.work()) == ["sql-1", "sql-2"]
    row = db.execute("SELECT state, error FROM job_history WHERE id = 'broken'").fetchone()
    assert row is not None
    assert row[0] == "discarded"
    assert "message" in row[1]


def test_row_of_a_queue_nobody_reads_waits_there(db: Conn, bench: Bench, relay: Relay) -> None:
    insert(db, 1)
    db.execute("UPDATE jobs SET queue = 'elsewhere'")
    relay.round()
    assert bench.ids("elsewhere") == ["sql-1"]


# ---- outages


def test_relay_waits_out_both_servers(db: Conn, stack: Stack, bench: Bench, env: dict[str, str], relay: Relay) -> None:
    stack.redis.kill()
    job = noop.delay()
    assert relay.round() is False
    stack.redis.start()
    eventually(lambda: relay.round() or bench.ids() == [job.id], timeout=10)
    stack.postgres.kill()
    assert relay.round() is False
    stack.postgres.start()
    bench.redis.flushall()
    eventually(lambda: relay.round() or bench.ids() == [job.id], timeout=10)
