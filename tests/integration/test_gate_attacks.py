"""The gate under attack: many lines, two relays, changes while jobs wait, senders that know no limits, and every end of a job."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests.harness import eventually
from tests.integration.conftest import Bench
from tests.sample_tasks import add, limited_again, metered, narrow
from worker.app import app
from worker.db import statement
from worker.engine.relay import Relay
from worker.errors import InvalidJob, InvalidLimit
from worker.ledger import limits, lines, manage
from worker.ledger.gate import Gate
from worker.limits import Limiter
from worker.limits.policy import parse_policy
from worker.store import keys

Conn = psycopg.Connection[Any]


@pytest.fixture(autouse=True)
def _patient(conf: Callable[..., None]) -> None:
    conf(limits_timeout_ms=5000)


def put(db: Conn, text: str) -> None:
    """Set a policy."""
    limits.put(db, parse_policy(text))


def sent(bench: Bench) -> Counter[str]:
    """Return how many jobs of each tenant lie in Redis."""
    return Counter(json.loads(message["body"])[1].get("tenant", "") for message in bench.waiting())


def unsent(db: Conn) -> int:
    row = db.execute("SELECT count(*) FROM jobs WHERE dispatch_epoch IS NULL").fetchone()
    return row[0] if row else 0


# ---- fairness and cost


def test_every_line_is_served_in_turn_also_when_there_are_more_than_the_room(
    bench: Bench, relay: Relay, conf: Callable[..., None]
) -> None:
    for tenant in range(60):  # the first has ten times as many as the others
        for n in range(20 if tenant == 0 else 2):
            metered.delay(tenant=f"t{tenant:02}", number=n)
    conf(window=20)
    got: Counter[str] = Counter()
    for _ in range(12):  # ten jobs a round: all of the others' and a few of the first
        relay.round()
        got += sent(bench)
        bench.redis.delete(*keys.queue_lists("default"))
    shares = [got[f"t{tenant:02}"] for tenant in range(60)]
    assert sum(shares) == 120
    assert sum(shares) ** 2 / (60 * sum(share**2 for share in shares)) >= 0.95, shares


def test_refused_jobs_cost_no_message_no_row_write_and_no_row_lock(
    bench: Bench, relay: Relay, db: Conn, redis: Redis
) -> None:
    """Scaled down from a million: what a round costs is that of the lines, not of the jobs that stand in them."""
    put(db, "sums {task} 5/hour")
    first = add.delay(1, 2)
    db.execute(
        "INSERT INTO jobs (id, task, queue, priority, state, message, args, kwargs, available_at, gate, created_at) "
        "SELECT id || n, task, queue, priority, state, message, args, kwargs, available_at, gate, created_at + interval '1 hour' "
        "FROM jobs, generate_series(1, 20000) n WHERE id = %s",
        (first.id,),
    )
    db.execute("DELETE FROM jobs WHERE id = %s", (first.id,))
    db.execute("UPDATE jobs SET message = jsonb_set(message::jsonb, '{headers,id}', to_jsonb(id))::json")
    db.execute("VACUUM (FREEZE, ANALYZE) jobs")
    relay.round()
    assert len(bench.ids()) == 5
    before, pages = rows(db), wal(db)
    commands = redis.info("stats")["total_commands_processed"]
    for _ in range(20):
        relay.round()
        relay._gate._closed_until.clear()  # as if a second had passed
    assert len(bench.ids()) == 5, "a refused job became a message"
    assert rows(db) == before, "a refused job's row was written or locked"
    assert wal(db) - pages < 200_000, "refusals were written to the log of Postgres"
    assert redis.info("stats")["total_commands_processed"] - commands < 20 * 40


def rows(db: Conn) -> Any:
    return db.execute("SELECT count(*), sum(hashtext(id || xmin::text || xmax::text || ctid::text)) FROM jobs").fetchone()


def wal(db: Conn) -> int:
    row = db.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
    return int(row[0]) if row else 0


def test_two_relays_on_one_line_send_each_job_once_and_no_more_than_the_limit(bench: Bench, relay: Relay, db: Conn) -> None:
    for n in range(80):
        metered.delay(tenant="a", number=n)
    relay.round()
    bench.redis.delete(*keys.queue_lists("default"), Limiter("20/second", name="tenant").counter("a"))
    found: list[list[str]] = [[] for _ in range(4)]
    start = threading.Barrier(4)

    def work(number: int) -> None:
        gate = Gate()
        start.wait()
        with statement() as conn:
            for _ in range(3):
                found[number] += [job.id for job in gate.take_due(conn, "default", 100, "epoch")]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [job_id for of in found for job_id in of]
    assert len(ids) == len(set(ids))
    assert 15 <= len(ids) <= 60
    assert unsent(db) == 60 - len(ids)


# ---- changes while jobs wait


def test_limit_that_is_set_while_jobs_wait_holds_for_them(bench: Bench, relay: Relay, db: Conn) -> None:
    manage.set_paused(db, "default", True)
    ids = [add.apply_async((n, n), countdown=0.01).id for n in range(8)]
    put(db, "sums {task} 3/hour")
    manage.set_paused(db, "default", False)
    time.sleep(0.1)
    eventually(lambda: relay.round() is not None and len(bench.ids()) == 3, 5)
    for _ in range(5):
        relay.round()
    assert len(bench.ids()) == 3
    assert set(bench.ids()) <= set(ids)
    assert unsent(db) == 5


def test_scope_that_is_changed_while_jobs_stand_in_line_puts_them_into_others(bench: Bench, relay: Relay, db: Conn) -> None:
    put(db, "shared {task} 1/hour")
    for tenant in "abc":
        for n in range(2):
            metered.delay(tenant=tenant, number=n)
    eventually(lambda: relay.round() is not None and sum(sent(bench).values()) == 1, 5)
    put(db, "shared {kwargs[tenant]} 1/hour")
    eventually(lambda: relay.round() is not None and set(sent(bench)) == {"a", "b", "c"}, 8)
    assert max(sent(bench).values()) <= 2


def test_limit_that_is_switched_off_while_jobs_wait_lets_them_go(bench: Bench, relay: Relay, db: Conn) -> None:
    put(db, "sums {task} 1/hour")
    for n in range(5):
        add.delay(n, n)
    eventually(lambda: relay.round() is not None and len(bench.ids()) == 1, 5)
    limits.put(db, {**parse_policy("sums {task} 1/hour"), "enabled": False})
    eventually(lambda: relay.round() is not None and len(bench.ids()) == 5, 5)


# ---- senders that know of no limit, and odd keys


def test_job_of_a_sender_that_does_not_know_the_task_is_put_in_line_by_the_worker(
    bench: Bench, relay: Relay, db: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(lines, "_declared", {})
        job = app.send_task(narrow.name, ("x",))
    assert bench.work() == [job.id], "it was sent at once, past the gate"
    assert db.execute("SELECT state, attempt, gate IS NOT NULL, dispatch_epoch FROM jobs").fetchone() == ("queued", 0, True, None)
    eventually(lambda: relay.round() is not None and bench.ids() == [job.id], 5)
    assert bench.work() == [job.id]
    assert app.AsyncResult(job.id).get(timeout=5) == "x"


def test_jobs_that_lack_what_names_the_key_share_one_when_their_sender_does_not_know_the_task(
    bench: Bench, relay: Relay, db: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(lines, "_declared", {})
        jobs = [app.send_task(metered.name, kwargs={"tenant": None, "number": n}) for n in range(30)]
    assert len(bench.work()) == 30, "they were sent at once, past the gate"
    (told,) = db.execute("SELECT array_agg(DISTINCT gate) FROM jobs").fetchone() or ((),)
    assert [json.loads(gate)[0][:2] for gate in told] == [["tenant", "-"]]
    relay.round()
    assert 0 < len(bench.ids()) <= 21 < len(jobs), "they keep to the limit together"


def test_limit_that_somebody_wrote_wrongly_by_hand_stops_nobody(bench: Bench, relay: Relay, db: Conn) -> None:
    put(db, "broken {task} 1/hour")
    put(db, "often {task} 1/hour")
    db.execute("UPDATE limit_policies SET scope = '{nobody}' WHERE name = 'broken'")
    db.execute("UPDATE limit_policies SET rate = 'often' WHERE name = 'often'")
    put(db, "sums {task} 1/hour")
    for _ in range(2):
        add.delay(1, 2)
    relay.round()
    assert len(bench.ids()) == 1, "and the others hold"


def test_limited_task_cannot_be_without_a_row() -> None:
    with pytest.raises(InvalidLimit, match="not durable"):
        app.task(name="attack.no_row", shared=False, durable=False, limits=["a:{task} 1/second"], lazy=False)(unsent)
    with pytest.raises(InvalidJob, match="durable=False"):
        metered.apply_async(kwargs={"tenant": "a"}, durable=False)


@pytest.mark.parametrize("tenant", ["\u4e2d" * 3000, "a\nb\0c", "{kwargs[number]}", "x" * 9000, "'; DROP TABLE jobs; --", "é"])
def test_key_of_any_signs_and_length_waits_in_a_line_of_its_own(tenant: str, bench: Bench, relay: Relay) -> None:
    job, other = metered.delay(tenant=tenant), metered.delay(tenant=tenant + "1")
    many = [metered.s(tenant=tenant, number=n) for n in range(2)]
    for signature in many:
        signature.apply_async()
    relay.round()
    assert {job.id, other.id} < set(bench.ids())
    assert len(bench.work()) == 4


# ---- every end of a job


def test_job_that_goes_on_under_another_name_stands_in_the_line_of_that(bench: Bench, relay: Relay, db: Conn) -> None:
    job = limited_again.delay("one", "two")
    relay.round()
    assert bench.work() == [job.id]
    assert db.execute("SELECT gate FROM jobs").fetchone() == ('[["again","two","3/hour sliding","closed"]]',)
    eventually(lambda: relay.round() is not None and bench.work() == [job.id], 5)
    assert job.get(timeout=5) == "two"
    assert [Limiter("3/hour", name="again").peek(key).remaining for key in ("one", "two")] == [2, 2]


def test_limited_job_that_is_cancelled_expires_or_is_paused_while_it_waits_charges_nothing(
    bench: Bench, relay: Relay, db: Conn
) -> None:
    put(db, "tenant {kwargs[tenant]} 20/hour")
    metered_to_the_end = [metered.delay(tenant="a", number=n) for n in range(20)]
    relay.round()
    cancelled = metered.delay(tenant="a")
    expired = metered.apply_async(kwargs={"tenant": "a"}, expires=0.2)
    cancelled.revoke()
    time.sleep(0.3)
    manage.set_paused(db, "default", True)
    paused = metered.delay(tenant="b")
    eventually(lambda: relay.round() is not None and finished(db, [cancelled.id, expired.id]) == ["cancelled", "expired"], 10)
    assert paused.id not in bench.ids()
    assert Limiter("20/hour", name="tenant").peek("b").remaining == 20
    manage.set_paused(db, "default", False)
    eventually(lambda: relay.round() is not None and paused.id in bench.ids(), 5)
    assert len(bench.ids()) == len(metered_to_the_end) + 1


def finished(db: Conn, ids: list[str]) -> list[str]:
    found = dict(db.execute("SELECT id, state FROM job_history WHERE id = ANY(%s)", (ids,)).fetchall())
    return [found.get(job_id, "") for job_id in ids]
