"""Metered calls on record: budgets survive Redis, and fifty workers with bad estimates, deaths and a flush overspend nothing."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg
import pytest
from redis import Redis

from tests.harness import eventually
from worker.embedded import Stack
from worker.errors import CostTooHigh, InvalidLimit, LimitNotFound, Unpriced
from worker.ledger import limits, usage
from worker.ledger.usage import Actual
from worker.limits import Budgets, Outcome, Spend, Standing, Window
from worker.limits.policy import parse_policy
from worker.store import keys

ORG = "org:acme"
USER = "org:acme/user:7"


@pytest.fixture(autouse=True)
def _patient(conf: Callable[..., None]) -> None:
    conf(limits_timeout_ms=5000)


@pytest.fixture
def policy(db: psycopg.Connection[Any]) -> Callable[[str], Any]:
    """Set a policy: `policy("budget org:* 1000 tokens/day")`."""
    return lambda text: limits.put(db, parse_policy(text))


def spent(subject: str = ORG, period: str = "month") -> tuple[int, ...]:
    level = Budgets(limits.plan()).peek(subject)[Window(period, subject)]  # type: ignore[arg-type]
    return (*level.spent, *level.open)


# ---- policies


def test_policy_holds_at_once_where_it_was_set_and_until_it_is_removed(
    policy: Callable[[str], Any], db: psycopg.Connection[Any]
) -> None:
    assert limits.charges_for({"kwargs": {"host": "a"}, "task": "t"}) == []
    policy("host {host} 10/second local")
    (charge,) = limits.charges_for({"kwargs": {"host": "a"}, "task": "t"})
    assert (charge.limit.name, charge.key, charge.limit.on_outage) == ("host", "a", "local")
    assert str(charge.limit.rate) == "10/second sliding"
    policy("host {host} 20/second")
    (charge,) = limits.charges_for({"kwargs": {"host": "a"}, "task": "t"})
    assert str(charge.limit.rate) == "20/second sliding"
    assert limits.charges_for({"kwargs": {}, "task": "t"}) == [], "a call that has no host is not limited by hosts"
    limits.remove(db, "host")
    assert limits.charges_for({"kwargs": {"host": "a"}, "task": "t"}) == []
    with pytest.raises(LimitNotFound):
        limits.remove(db, "host")


def test_policies_of_settings_hold_until_one_of_the_table_replaces_them(
    conf: Callable[..., None], policy: Callable[[str], Any]
) -> None:
    conf(limits="host {host} 10/second; budget org:* 1000 tokens/day, 5 requests/day")
    assert [(p["name"], p["rate"]) for p in limits.policies()] == [
        ("host", "10/second sliding"), ("org:*", "5 requests/day, 1000 tokens/day")
    ]  # fmt: skip
    policy("host {host} 99/second")
    assert [p["rate"] for p in limits.policies() if p["name"] == "host"] == ["99/second sliding"]


@pytest.mark.parametrize(
    "text",
    ["", "host", "host {host}", "host {nobody} 1/second", "host {kwargs} 1/second", "host {host 1/second", "a:b {host} 1/second",
     "host {host} 1/second shut", "budget org:* 5 dollars/day", "budget org 5 tokens/day", "budget org:* 5 tokens/day open"],
)  # fmt: skip
def test_policy_that_cannot_be_understood_gets_one_clear_error(text: str) -> None:
    with pytest.raises(InvalidLimit) as found:
        parse_policy(text)
    assert "\n" not in str(found.value)


# ---- the record


def test_call_is_on_record_from_its_reservation_to_its_end(policy: Callable[[str], Any], db: psycopg.Connection[Any]) -> None:
    policy("budget org:* 1000 tokens/month, 100 micros/month")
    call = usage.reserve(USER, Spend(tokens=400, micros=40), model="m", job_id="j")
    assert call
    rows = "SELECT subject, tokens, micros, model, job_id FROM usage_reservations"
    assert db.execute(rows).fetchall() == [(USER, 400, 40, "m", "j")]
    assert usage.settle(call.id, Actual(tokens_in=100, tokens_out=50, micros=15)) is Outcome.SETTLED
    assert usage.settle(call.id, Actual(tokens_in=100, tokens_out=50, micros=15)) is Outcome.AGAIN
    assert db.execute("SELECT count(*) FROM usage_reservations").fetchone() == (0,)
    rows = "SELECT subject, root, model, job_id, requests, tokens_in, tokens_out, micros, told FROM usage"
    assert db.execute(rows).fetchall() == [(USER, ORG, "m", "j", 1, 100, 50, 15, True)]
    assert spent() == (1, 150, 15, 0, 0, 0)


def test_id_of_another_call_is_refused_and_never_spends_twice(
    policy: Callable[[str], Any], db: psycopg.Connection[Any], redis: Redis
) -> None:
    policy("budget org:* 1000 tokens/month")
    assert usage.reserve(USER, Spend(tokens=400), id="one")
    assert usage.reserve(USER, Spend(tokens=400), id="one"), "the same call again is the same call"
    with pytest.raises(InvalidLimit, match="'one' is reserved for 'org:acme/user:7'; reserve under a new id"):
        usage.reserve("org:other/user:1", Spend(tokens=400), id="one")
    usage.settle("one", Actual(tokens_in=300))
    redis.flushall()  # and with it the memory of what has ended
    with pytest.raises(InvalidLimit, match="'one' has ended; reserve under a new id"):
        usage.reserve(USER, Spend(tokens=400), id="one")
    usage.reserve(USER, Spend(tokens=1))
    assert spent() == (2, 301, 0, 1, 1, 0)


@pytest.mark.parametrize(
    "options", [{"id": "a\0"}, {"id": "x" * 256}, {"model": "a\0"}, {"model": "m" * 999}, {"job_id": "\ud800"}]
)
def test_what_the_record_could_not_keep_is_refused(options: dict[str, str], policy: Callable[[str], Any]) -> None:
    policy("budget org:* 1000 tokens/month")
    (name,) = options
    with pytest.raises(InvalidLimit, match=f"^{name}: "):
        usage.reserve(USER, Spend(tokens=1), **options)  # type: ignore[arg-type]


def test_ends_in_any_order_count_once(policy: Callable[[str], Any], db: psycopg.Connection[Any]) -> None:
    policy("budget org:* 1000 tokens/month")
    first, second = usage.reserve(USER, Spend(tokens=400)), usage.reserve(USER, Spend(tokens=400))
    usage.settle(first.id, Actual(tokens_in=100))
    assert usage.release(first.id) is Outcome.AGAIN, "what was spent cannot be given back"
    usage.release(second.id)
    with pytest.raises(InvalidLimit, match="is not reserved"):
        usage.settle(second.id, Actual(tokens_in=100))
    assert spent() == (1, 100, 0, 0, 0, 0)


def test_spend_counts_in_the_day_and_month_of_utc_it_was_reserved_in(
    policy: Callable[[str], Any], db: psycopg.Connection[Any], redis: Redis
) -> None:
    """A microsecond on either side of each edge, whatever the time zone of the session."""
    policy("budget org:* 1000 tokens/month, 1000 requests/day")
    db.execute("SET timezone = 'Pacific/Kiritimati'")
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    month, blink = midnight.replace(day=1), timedelta(microseconds=1)
    moments = [month - blink, month, midnight - blink, midnight]
    for n, moment in enumerate(moments):
        db.execute(
            "INSERT INTO usage (reservation_id, root, subject, requests, tokens_in, tokens_out, micros, reserved_at, told) "
            "VALUES (%s, %s, %s, 1, 1, 0, 0, %s, true)",
            (str(n), ORG, USER, moment),
        )
    usage.release(usage.reserve(USER, Spend()).id)
    assert spent(period="month")[1] == sum(moment >= month for moment in moments)
    assert spent(period="day")[0] == sum(moment >= midnight for moment in moments)


def test_budget_that_is_removed_while_calls_are_open_forgets_none_of_them(
    policy: Callable[[str], Any], db: psycopg.Connection[Any]
) -> None:
    policy("budget org:* 1000 tokens/month")
    call = usage.reserve(USER, Spend(tokens=400))
    limits.remove(db, "org:*")
    assert usage.reserve(USER, Spend(tokens=10**9)), "nothing bounds it any more"
    assert usage.settle(call.id, Actual(tokens_in=300)) is Outcome.SETTLED
    policy("budget org:* 1000 tokens/month")
    assert not usage.reserve(USER, Spend(tokens=701))


def test_refused_released_and_impossible_calls_leave_no_row(policy: Callable[[str], Any], db: psycopg.Connection[Any]) -> None:
    policy("budget org:* 1000 tokens/month, 100 micros/month")
    call = usage.reserve(USER, Spend(tokens=900))
    assert not usage.reserve(USER, Spend(tokens=200))
    with pytest.raises(CostTooHigh):
        usage.reserve(USER, Spend(tokens=2000))
    with pytest.raises(Unpriced):
        usage.reserve(USER, Spend(tokens=1, micros=None))
    assert usage.release(call.id) is Outcome.RELEASED
    assert usage.release(call.id) is Outcome.AGAIN
    assert db.execute("SELECT (SELECT count(*) FROM usage), (SELECT count(*) FROM usage_reservations)").fetchone() == (0, 0)
    assert spent() == (0, 0, 0, 0, 0, 0)
    with pytest.raises(InvalidLimit, match="reserve before the call"):
        usage.settle("nobody", Actual())


def test_budget_of_money_that_comes_while_a_call_is_made_does_not_lose_its_spend(
    policy: Callable[[str], Any], db: psycopg.Connection[Any]
) -> None:
    policy("budget org:* 1000 tokens/month")
    call = usage.reserve(USER, Spend(tokens=400, micros=None))
    policy("budget org:* 1000 tokens/month, 100 micros/month")
    assert usage.settle(call.id, Actual(tokens_in=300, micros=None)) is Outcome.SETTLED
    assert db.execute("SELECT tokens_in, micros, told FROM usage").fetchone() == (300, 0, True)
    assert spent()[1] == 300


def test_budget_that_somebody_wrote_wrongly_by_hand_refuses_new_calls_and_loses_no_spend(
    policy: Callable[[str], Any], db: psycopg.Connection[Any]
) -> None:
    policy("budget org:* 1000 tokens/month")
    call = usage.reserve(USER, Spend(tokens=400))
    db.execute("UPDATE limit_policies SET rate = 'a lot'")
    policy("sums {task} 1/hour")
    with pytest.raises(InvalidLimit, match=r"^budget: 'a lot'"):
        usage.reserve(USER, Spend(tokens=1))
    assert usage.settle(call.id, Actual(tokens_in=300)) is Outcome.SETTLED
    assert db.execute("SELECT tokens_in, told FROM usage").fetchone() == (300, True)


def test_spend_that_redis_was_not_there_to_count_is_told_later(
    policy: Callable[[str], Any], db: psycopg.Connection[Any], stack: Stack
) -> None:
    policy("budget org:* 1000 tokens/month")
    call = usage.reserve(USER, Spend(tokens=400))
    stack.redis.kill()
    assert usage.settle(call.id, Actual(tokens_in=300)) is Outcome.SETTLED
    assert not usage.reserve(USER, Spend(tokens=1)), "a budget is closed while Redis is away"
    stack.redis.start()
    db.execute("UPDATE usage SET settled_at = settled_at - interval '1 minute'")
    eventually(lambda: usage.tell_overdue(db) == 0 and told(db) == [True], 10)
    assert usage.reserve(USER, Spend(tokens=1))
    assert spent()[1] == 301


def told(db: psycopg.Connection[Any]) -> list[bool]:
    return [row[0] for row in db.execute("SELECT told FROM usage").fetchall()]


def test_flushed_budget_stands_where_it_stood(policy: Callable[[str], Any], redis: Redis) -> None:
    policy("budget org:* 1000 tokens/month")
    policy("budget org:*/user:* 800 tokens/minute")
    first, second = usage.reserve(USER, Spend(tokens=400)), usage.reserve(USER, Spend(tokens=300))
    usage.settle(first.id, Actual(tokens_in=350))
    before = spent(), spent(USER, "minute")
    redis.flushall()
    assert not usage.reserve("org:acme/user:8", Spend(tokens=351)), "650 are spent or reserved"
    assert usage.reserve("org:acme/user:7", Spend(tokens=1), id="one")
    usage.release("one")
    assert (spent(), spent(USER, "minute")) == before
    usage.settle(second.id, Actual(tokens_in=100))
    assert spent() == (2, 450, 0, 0, 0, 0)


def test_settle_that_meets_a_flushed_redis_counts_once(policy: Callable[[str], Any], redis: Redis) -> None:
    policy("budget org:* 1000 tokens/month")
    call = usage.reserve(USER, Spend(tokens=400))
    redis.flushall()
    assert usage.settle(call.id, Actual(tokens_in=390)) is Outcome.UNKNOWN
    assert usage.reserve(USER, Spend(tokens=610), id="fits")
    assert spent() == (2, 1000, 0, 1, 610, 0)


def test_settle_of_a_call_that_a_load_has_missed_makes_redis_load_anew(policy: Callable[[str], Any], redis: Redis) -> None:
    policy("budget org:* 1000 tokens/month")
    call = usage.reserve(USER, Spend(tokens=400))
    redis.flushall()
    Budgets(limits.plan()).load(ORG, [Standing(Window("month", ORG), [])])  # as if the record had been read before the call
    assert usage.settle(call.id, Actual(tokens_in=390)) is Outcome.UNKNOWN
    assert not usage.reserve(USER, Spend(tokens=611))
    assert spent() == (1, 390, 0, 0, 0, 0)


def test_window_that_a_new_policy_brings_begins_with_what_was_spent(policy: Callable[[str], Any]) -> None:
    policy("budget org:* 1000 tokens/month")
    call, still_open = usage.reserve(USER, Spend(tokens=400)), usage.reserve(USER, Spend(tokens=100))
    usage.settle(call.id, Actual(tokens_in=400))
    policy("budget org:*/user:* 600 tokens/day")
    assert not usage.reserve(USER, Spend(tokens=101)), "the day of the user begins at 500"
    usage.settle(still_open.id, Actual(tokens_in=50))
    assert spent(USER, "day") == (2, 450, 0, 0, 0, 0)


def test_late_settle_is_recorded_and_counted(policy: Callable[[str], Any]) -> None:
    policy("budget org:* 1000 tokens/month")
    call = usage.reserve(USER, Spend(tokens=400), lease_s=1.5)
    eventually(lambda: spent() == (0, 0, 0, 0, 0, 0), 10)
    assert usage.settle(call.id, Actual(tokens_in=380)) is Outcome.LATE
    assert spent() == (1, 380, 0, 0, 0, 0)


def test_totals_tell_spend_by_subject_model_and_day(policy: Callable[[str], Any], db: psycopg.Connection[Any]) -> None:
    for subject, model, tokens in ((USER, "a", 10), (USER, "b", 20), ("org:acme/user:70", "a", 40), ("org:other", "a", 80)):
        call = usage.reserve(subject, Spend(tokens=tokens), model=model)
        usage.settle(call.id, Actual(tokens_in=tokens, micros=tokens * 2))
    since = datetime.now(UTC) - timedelta(days=1)
    found = usage.totals(db, by=["subject", "model"], since=since, subject=USER)
    assert [(row["model"], row["tokens_in"], row["micros"]) for row in found] == [("a", 10, 20), ("b", 20, 40)]
    (day,) = usage.totals(db, by=["day"], since=since)
    assert (day["requests"], day["tokens_in"]) == (4, 150)
    with pytest.raises(InvalidLimit, match="by: "):
        usage.totals(db, by=["color"], since=since)


# ---- the race of fifty workers

BUDGET = 100_000
LEASE_S = 1.5


class Call(NamedTuple):
    """A call that was admitted: what it was thought and found to take, and when it was asked for and ended."""

    estimate: int
    actual: int
    asked_at: float
    ended_at: float


class Run:
    """Fifty workers that reserve, call, settle; some estimates are half or double, some workers die in the call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.killed: list[float] = []
        self.stop = threading.Event()

    def work(self, number: int) -> None:
        chance = random.Random(number)
        while not self.stop.is_set():
            actual = chance.randint(200, 900)
            estimate = max(1, round(actual * chance.uniform(0.5, 1.5)))
            asked_at = time.monotonic()
            try:
                call = usage.reserve(f"org:acme/user:{number % 5}", Spend(tokens=estimate), lease_s=LEASE_S)
            except InvalidLimit as exc:
                if "is returned" not in str(exc):
                    raise
                continue  # given back with the record after a flush, its short lease ended before Redis was asked
            if not call:
                time.sleep(min(0.05, call.decision.retry_after_s))
                continue
            time.sleep(chance.uniform(0, 0.02))
            if chance.random() < 0.05:
                self.killed.append(asked_at)
                continue  # dies: nothing of this call is ever heard again
            usage.settle(call.id, Actual(tokens_in=actual))
            self.calls.append(Call(estimate, actual, asked_at, time.monotonic()))

    @property
    def excused(self) -> int:
        """What the calls that were open at the last admission took beyond their estimates; all others were known in full."""
        last = max([*self.killed, *(call.asked_at for call in self.calls)])
        return sum(max(0, call.actual - call.estimate) for call in self.calls if call.ended_at > last)


def on_record(db: psycopg.Connection[Any]) -> int:
    row = db.execute("SELECT coalesce(sum(tokens_in), 0) FROM usage").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("flush", [False, True], ids=["undisturbed", "flushed"])
def test_fifty_workers_use_the_budget_and_never_exceed_what_was_admitted(
    flush: bool, policy: Callable[[str], Any], db: psycopg.Connection[Any], redis: Redis
) -> None:
    policy(f"budget org:* {BUDGET} tokens/month")
    run = Run()
    threads = [threading.Thread(target=run.work, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    try:
        if flush:
            for part in (0.2, 0.5, 0.8):
                eventually(lambda part=part: on_record(db) > BUDGET * part, 60, what="the workers spending")  # type: ignore[misc]
                redis.flushall()
        eventually(lambda: on_record(db) >= BUDGET * 0.95, 60, what="95 % of the budget being used")
        time.sleep(LEASE_S + 1)
    finally:
        run.stop.set()
        for thread in threads:
            thread.join()
    time.sleep(LEASE_S + 1)
    assert run.killed
    assert Budgets(limits.plan()).open_calls(ORG) == 0, "reservations of the dead were left after their lease and a second"
    assert on_record(db) - run.excused <= BUDGET, "more was spent than the estimates that were admitted"
    assert spent()[1] == on_record(db), "Redis and the record count differently"
    assert [key for key in redis.scan_iter("holdfast:budget:*") if redis.pttl(key) <= 0] == []
    assert keys.budget(ORG).encode() in set(redis.scan_iter())
