"""The gate: limited jobs wait in Postgres, in lines, without an attempt, and no line stands before another."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests.harness import eventually
from tests.integration.conftest import Bench
from tests.sample_tasks import add, metered, narrow
from worker.app import app
from worker.engine.relay import Relay
from worker.errors import InvalidJob, InvalidLimit
from worker.ledger import limits, lines, manage
from worker.ledger.message import HEADER
from worker.limits.policy import parse_policy
from worker.store import keys

Conn = psycopg.Connection[Any]


@pytest.fixture(autouse=True)
def _patient(conf: Callable[..., None]) -> None:
    conf(limits_timeout_ms=5000)


def tenants(bench: Bench) -> Counter[str]:
    """Return how many jobs of each tenant lie in Redis."""
    return Counter(json.loads(message["body"])[1].get("tenant", "") for message in bench.waiting())


def test_limited_job_is_not_sent_by_its_caller_but_by_the_relay(bench: Bench, relay: Relay, db: Conn) -> None:
    job = metered.delay(tenant="a")
    assert bench.ids() == []
    assert db.execute("SELECT gate FROM jobs").fetchone() == ('[["tenant","a","20/second sliding","closed"]]',)
    relay.round()
    assert bench.ids() == [job.id]
    assert bench.work() == [job.id]
    assert job.get(timeout=5) == 0


def test_limit_lets_so_many_through_and_touches_no_other_row(bench: Bench, relay: Relay, db: Conn) -> None:
    for n in range(60):
        metered.delay(tenant="a", number=n)
    before = db.execute("SELECT id, xmin::text FROM jobs ORDER BY created_at").fetchall()
    relay.round()
    relay.round()
    assert len(bench.ids()) == 20
    assert bench.ids() == [row[0] for row in before[:20]], "first come, first through"
    left = db.execute("SELECT id, xmin::text FROM jobs WHERE dispatch_epoch IS NULL ORDER BY created_at").fetchall()
    assert left == before[20:]
    assert db.execute("SELECT sum(attempt) FROM jobs").fetchone() == (0,)


def test_limited_jobs_all_run_in_their_time_and_in_order(bench: Bench, relay: Relay) -> None:
    ids = [metered.delay(tenant="a", number=n).id for n in range(50)]
    ran: list[str] = []
    started = time.monotonic()

    def all_ran() -> bool:
        relay.round()
        ran.extend(bench.work())
        return len(ran) == 50

    eventually(all_ran, 20)
    assert ran == ids
    assert time.monotonic() - started > 1.9, "50 at 20 a second take two seconds and a part"


def test_backlog_of_a_limited_tenant_delays_no_other_job(bench: Bench, relay: Relay) -> None:
    for n in range(100):
        metered.delay(tenant="big", number=n)
    relay.round()
    relay.round()
    assert tenants(bench) == {"big": 20}
    other, free = metered.delay(tenant="small"), add.delay(1, 2)
    relay.round()
    assert {other.id, free.id} <= set(bench.ids())


def test_ten_tenants_get_the_same_though_one_has_ten_times_the_backlog(
    bench: Bench, relay: Relay, conf: Callable[..., None]
) -> None:
    """Jain's index of what each got while the window, not the limits, was scarce."""
    for n in range(200):
        metered.delay(tenant="t0", number=n)
    for tenant in range(1, 10):
        for n in range(20):
            metered.delay(tenant=f"t{tenant}", number=n)
    conf(window=20)
    got: Counter[str] = Counter()
    for _ in range(12):
        relay.round()
        found = tenants(bench)
        got.update({name: found[name] for name in found})
        bench.redis.delete(*keys.queue_lists("default"))
    shares = [got[f"t{tenant}"] for tenant in range(10)]
    assert sum(shares) > 50
    assert sum(shares) ** 2 / (10 * sum(share**2 for share in shares)) >= 0.95, shares


def test_policy_of_the_table_limits_every_task_it_fits_and_its_rate_can_be_edited(bench: Bench, relay: Relay, db: Conn) -> None:
    limits.put(db, parse_policy("sums {task} 3/hour"))
    for n in range(10):
        add.delay(n, n)
    relay.round()
    assert len(bench.ids()) == 3
    limits.put(db, parse_policy("sums {task} 5/hour"))
    eventually(lambda: relay.round() is not None and len(bench.ids()) == 5, 5)
    limits.remove(db, "sums")
    eventually(lambda: relay.round() is not None and len(bench.ids()) == 10, 5)


def test_policy_stands_before_the_rate_a_task_declares(bench: Bench, relay: Relay, db: Conn) -> None:
    limits.put(db, parse_policy("tenant {kwargs[tenant]} 2/hour"))
    for _ in range(5):
        metered.delay(tenant="a")
    relay.round()
    assert len(bench.ids()) == 2


def test_retried_and_replayed_jobs_stand_in_line_again(bench: Bench, relay: Relay, db: Conn) -> None:
    job = metered.delay(tenant="a")
    relay.round()
    bench.work()
    manage.replay(db, job.id)
    assert bench.ids() == []
    assert db.execute("SELECT gate IS NOT NULL FROM jobs").fetchone() == (True,)
    relay.round()
    assert bench.ids() == [job.id]


def test_call_that_lacks_what_names_its_key_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(InvalidJob, match=r"its limit 'tenant' goes by \{kwargs\[tenant\]\}, which this call does not have"):
        metered.delay(None)


def test_limit_finds_an_argument_by_place_by_name_and_by_default(bench: Bench, db: psycopg.Connection[Any], redis: Redis) -> None:
    limits.put(db, parse_policy("nth {kwargs[number]} 100/second"))
    for args, kwargs in (((), {"tenant": "a", "number": 0}), (("a",), {}), (("a", 0), {}), ((), {"tenant": "a"})):
        metered.apply_async(args, kwargs)
    ((gate,),) = db.execute("SELECT DISTINCT gate FROM jobs").fetchall()
    assert [entry[:2] for entry in json.loads(gate)] == [["nth", "0"], ["tenant", "a"]]


@pytest.mark.parametrize("text", ["10/second", "host 10/second", "host:{nobody} 10/second", "host:{host} often", "", None])
def test_task_with_a_limit_that_cannot_be_is_refused_where_it_is_declared(text: Any) -> None:
    with pytest.raises(InvalidLimit):
        lines.declare("some.task", [text])


def test_limited_jobs_of_a_flushed_broker_wait_in_line_again(bench: Bench, relay: Relay, redis: Redis) -> None:
    ids = {metered.delay(tenant="a").id for _ in range(5)}
    relay.round()
    assert set(bench.ids()) == ids
    redis.flushall()
    relay.round()
    relay.round()
    assert set(bench.ids()) == ids


def test_line_that_nobody_can_read_holds_up_no_other(bench: Bench, relay: Relay, db: Conn) -> None:
    spoiled = metered.delay(tenant="a")
    db.execute("UPDATE jobs SET gate = '!' WHERE id = %s", (spoiled.id,))
    sound, free = metered.delay(tenant="b"), add.delay(1, 2)
    relay.round()
    assert set(bench.ids()) == {sound.id, free.id}


# ---- slots


def test_slots_are_taken_at_dispatch_and_given_back_when_the_job_ends(bench: Bench, relay: Relay) -> None:
    jobs = [narrow.delay("x") for _ in range(5)]
    relay.round()
    assert bench.ids() == [job.id for job in jobs[:2]]
    ran: list[str] = []

    def all_ran() -> bool:
        relay.round()
        waiting = bench.ids()
        assert len(waiting) <= 2
        ran.extend(bench.work())
        return len(ran) == 5

    eventually(all_ran, 10)
    assert ran == [job.id for job in jobs]


def test_job_whose_slot_ran_out_in_the_queue_and_was_taken_waits_on_without_an_attempt(
    bench: Bench, relay: Relay, db: Conn
) -> None:
    late = narrow.delay("x")
    relay.round()
    message = bench.take()
    assert message is not None
    (charge,) = lines.charges_of(message["headers"][HEADER]["g"])
    charge.limit.reset("x")  # type: ignore[attr-defined]
    for holder in ("one", "two"):
        charge.limit.try_acquire("x", holder=holder)  # type: ignore[attr-defined]
    bench.run(message)
    row = "SELECT state, attempt, dispatch_epoch FROM jobs WHERE id = %s"
    assert db.execute(row, (late.id,)).fetchone() == ("queued", 0, None)
    charge.limit.reset("x")  # type: ignore[attr-defined]
    eventually(lambda: relay.round() is not None and bench.ids() == [late.id], 5)
    assert bench.work() == [late.id]
    assert app.AsyncResult(late.id).get(timeout=5) == "x"
