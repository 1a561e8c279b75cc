"""Budgets in Redis: reserve, settle, release, leases and loading, each exact and each harmless to repeat."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis

from tests.harness import eventually
from worker.embedded import Stack
from worker.errors import BudgetNotRebuilt, CostTooHigh, InvalidLimit, LimitExceeded, StoreUnavailable, Unpriced
from worker.limits import Budgets, OpenCall, Outcome, Plan, Reservation, Spend, Standing, Window
from worker.store import Script, keys, limits

ORG = "org:acme"
USER = "org:acme/user:7"


@pytest.fixture(autouse=True)
def _patient(conf: Callable[..., None]) -> None:
    conf(limits_timeout_ms=5000)


def budgets(lease_s: float = 120.0, **plan: str) -> Budgets:
    """Return budgets by the kind of subject."""
    patterns = {"org": "org:*", "user": "org:*/user:*", "key": "org:*/user:*/key:*"}
    return Budgets(Plan({patterns[kind]: text for kind, text in plan.items()}), lease_s=lease_s)


def reserve(of: Budgets, subject: str, estimate: Spend, **options: Any) -> Reservation:
    """Reserve; windows that are not known begin at nothing."""
    try:
        return of.try_reserve(subject, estimate, **options)
    except BudgetNotRebuilt as exc:
        of.load(exc.root, [Standing(window, []) for window in exc.windows])
        return of.try_reserve(subject, estimate, **options)


def spent(of: Budgets, subject: str = USER, period: str = "day") -> tuple[int, ...]:
    level = of.peek(subject)[Window(period, subject)]  # type: ignore[arg-type]
    return (*level.spent, *level.open)


def test_estimate_is_reserved_on_every_level_and_settled_on_the_actual(env: dict[str, str]) -> None:
    of = budgets(org="100 requests/day, 1000 tokens/day", user="500 tokens/minute")
    call = reserve(of, USER, Spend(tokens=400, micros=7))
    assert call
    assert spent(of, ORG) == (1, 400, 7, 1, 400, 7)
    assert spent(of, USER, "minute") == (1, 400, 7, 1, 400, 7)
    assert of.settle(USER, call.id, Spend(tokens=150, micros=3)) is Outcome.SETTLED
    assert spent(of, ORG) == (1, 150, 3, 0, 0, 0)
    assert spent(of, USER, "minute") == (1, 150, 3, 0, 0, 0)


def test_refusal_names_level_and_amount_and_charges_no_level(env: dict[str, str]) -> None:
    of = budgets(org="1000 tokens/day", user="500 tokens/minute")
    assert reserve(of, USER, Spend(tokens=400))
    refusal = reserve(of, USER, Spend(tokens=200))
    assert not refusal
    assert (refusal.decision.limit, refusal.decision.rate, refusal.decision.remaining) == (USER, "500 tokens/minute", 100)
    assert refusal.decision.retry_after_s == 1.0, "an open call may be settled any time"
    assert spent(of, ORG) == (1, 400, 0, 1, 400, 0)
    other = reserve(of, "org:acme/user:8", Spend(tokens=500))
    assert other
    third = reserve(of, "org:acme/user:9", Spend(tokens=200))
    assert (third.decision.limit, third.decision.remaining) == (ORG, 100)
    with pytest.raises(LimitExceeded) as found:
        of.reserve("org:acme/user:9", Spend(tokens=200))
    assert found.value.limit == ORG


def test_settled_spend_frees_a_sliding_minute_after_it_and_a_day_at_midnight(env: dict[str, str]) -> None:
    of = budgets(org="1000 tokens/day", user="500 tokens/minute")
    call = reserve(of, USER, Spend(tokens=500))
    of.settle(USER, call.id, Spend(tokens=500))
    assert 58 <= reserve(of, USER, Spend(tokens=1)).decision.retry_after_s <= 61
    of = budgets(org="1000 tokens/day")
    call = reserve(of, USER, Spend(tokens=500))
    of.settle(USER, call.id, Spend(tokens=500))
    midnight = (datetime.now(UTC) + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    wait = reserve(of, USER, Spend(tokens=1)).decision.retry_after_s
    assert abs(wait - (midnight - datetime.now(UTC)).total_seconds()) < 5


def test_month_ends_with_the_calendar_month(env: dict[str, str]) -> None:
    of = budgets(org="10 tokens/month")
    call = reserve(of, ORG, Spend(tokens=10))
    of.settle(ORG, call.id, Spend(tokens=10))
    now = datetime.now(UTC)
    first = (now.replace(day=28) + timedelta(days=4)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    assert abs(reserve(of, ORG, Spend(tokens=1)).decision.retry_after_s - (first - now).total_seconds()) < 5


def test_months_are_those_of_the_calendar_for_centuries(env: dict[str, str]) -> None:
    """The script's own functions, asked for the first and last day of each month."""
    days = []
    for year in (*range(1970, 2110), 2400):
        for month in range(1, 13):
            first = datetime(year, month, 1, tzinfo=UTC)
            day, number = int(first.timestamp()) // 86_400, year * 12 + month - 1
            days += [(day, number), (day - 1, number - 1)]
    source = Script("budget_tree").source + (
        "local wrong = 0\n"
        "for _, pair in ipairs(cjson.decode(ARGV[1])) do\n"
        "  local month = month_of(pair[1])\n"
        "  if month ~= pair[2] or first_day(month) > pair[1] or first_day(month + 1) <= pair[1] then wrong = wrong + 1 end\n"
        "end\n"
        "return wrong"
    )
    with limits().use() as client:
        assert client.eval(source, 2, "a", "b", json.dumps(days)) == 0


def test_repeated_reserve_and_settle_count_once(env: dict[str, str]) -> None:
    of = budgets(org="1000 tokens/day")
    for _ in range(3):
        assert reserve(of, USER, Spend(tokens=400), id="call-1")
    assert spent(of, ORG)[1] == 400
    assert of.settle(USER, "call-1", Spend(tokens=300)) is Outcome.SETTLED
    for _ in range(3):
        assert of.settle(USER, "call-1", Spend(tokens=300)) is Outcome.AGAIN
        assert of.release(USER, "call-1") is Outcome.AGAIN
    assert spent(of, ORG) == (1, 300, 0, 0, 0, 0)
    with pytest.raises(InvalidLimit, match="'call-1' is settled; reserve under a new id"):
        of.try_reserve(USER, Spend(tokens=1), id="call-1")


def test_released_call_leaves_nothing(env: dict[str, str]) -> None:
    of = budgets(org="1000 tokens/day")
    call = reserve(of, USER, Spend(tokens=400, micros=5))
    assert of.release(USER, call.id) is Outcome.RELEASED
    assert spent(of, ORG) == (0, 0, 0, 0, 0, 0)


def test_reservation_of_a_dead_caller_returns_with_its_lease_and_a_late_settle_still_counts(env: dict[str, str]) -> None:
    of = budgets(lease_s=1.5, org="1000 tokens/day")
    call = reserve(of, USER, Spend(tokens=900))
    assert not reserve(of, USER, Spend(tokens=900))
    assert eventually(lambda: reserve(of, USER, Spend(tokens=900), id="second", lease_s=60), 5)
    assert of.open_calls(ORG) == 1
    assert of.settle(USER, call.id, Spend(tokens=850)) is Outcome.LATE
    assert of.settle(USER, call.id, Spend(tokens=850)) is Outcome.AGAIN
    assert spent(of, ORG) == (2, 1750, 0, 1, 900, 0)


def test_renewed_call_outlives_its_first_lease(env: dict[str, str]) -> None:
    of = budgets(lease_s=1.5, org="1000 tokens/day")
    call = reserve(of, USER, Spend(tokens=900))
    until = time.monotonic() + 2
    while time.monotonic() < until:
        assert of.renew(USER, call.id)
        time.sleep(0.05)
    assert of.open_calls(ORG) == 1
    time.sleep(1.7)
    assert not of.renew(USER, call.id)


def test_call_that_takes_more_than_its_estimate_is_counted_in_full(env: dict[str, str]) -> None:
    of = budgets(org="1000 tokens/day")
    call = reserve(of, USER, Spend(tokens=900))
    of.settle(USER, call.id, Spend(tokens=1400))
    assert spent(of, ORG)[1] == 1400
    assert reserve(of, USER, Spend(tokens=1)).decision.remaining == 0


# ---- bad input


@pytest.mark.parametrize(
    "spend",
    [Spend(tokens=1.5), Spend(micros=0.1), Spend(tokens=-1), Spend(tokens=True), Spend(tokens=2**60),  # type: ignore[arg-type]
     Spend(requests=2**31), Spend(tokens=float("nan"))],  # type: ignore[arg-type]
)
def test_spend_that_is_no_whole_number_is_refused(spend: Spend, env: dict[str, str]) -> None:
    of = budgets(org="1000 tokens/day")
    with pytest.raises(InvalidLimit, match="whole number from 0; money in millionths, never in floats"):
        of.try_reserve(USER, spend)
    with pytest.raises(InvalidLimit):
        of.settle(USER, "x", spend)


@pytest.mark.parametrize(
    "text",
    ["", "1.5 micros/day", "5 dollars/day", "5 tokens", "5 tokens/week", "1 tokens/day, 2 tokens/day", "-1 tokens/day", None,
     "_ tokens/day", "1__0 tokens/day", "_1 tokens/day", "9" * 5000 + " tokens/day", f"{2**53} tokens/day"],
)  # fmt: skip
def test_budget_that_cannot_be_understood_gets_one_clear_error(text: Any) -> None:
    with pytest.raises(InvalidLimit, match=r"^budget: "):
        Plan({"org:*": text})


@pytest.mark.parametrize(
    "subject", ["", "acme", "org:acme/", "org:*", "org:a b", "/".join(["a:b"] * 7), "org:\ud800", "org:a\0", None]
)
def test_subject_that_cannot_be_is_refused(subject: Any, env: dict[str, str]) -> None:
    with pytest.raises(InvalidLimit, match=r"^subject: "):
        budgets(org="1 tokens/day").try_reserve(subject, Spend())


def test_call_without_a_price_is_refused_where_money_is_bounded_and_only_there(env: dict[str, str]) -> None:
    of = budgets(org="1000 micros/day")
    with pytest.raises(Unpriced, match="refused, not free"):
        of.try_reserve(USER, Spend(tokens=5, micros=None))
    assert reserve(budgets(org="1000 tokens/day"), "org:other", Spend(tokens=5, micros=None))


def test_estimate_above_the_cap_is_never_admissible_and_says_so(env: dict[str, str]) -> None:
    with pytest.raises(CostTooHigh, match="tokens=1001: the budget of 'org:acme' never admits more than 1000 a day"):
        budgets(org="1000 tokens/day").try_reserve(USER, Spend(tokens=1001))


@pytest.mark.parametrize("lease_s", [0, -1, True, "1", 10**9, float("nan")])
def test_lease_that_cannot_be_is_refused(lease_s: Any) -> None:
    with pytest.raises(InvalidLimit, match="lease_s="):
        Budgets(Plan({}), lease_s=lease_s)


def test_named_budget_stands_before_a_pattern() -> None:
    plan = Plan({"org:*/user:*": "1 tokens/day", "org:acme/user:*": "2 tokens/day", "org:acme/user:7": "3 tokens/day"})
    found = [str(plan.budget_of(subject)) for subject in ("org:x/user:1", "org:acme/user:1", USER, ORG)]
    assert found == ["1 tokens/day", "2 tokens/day", "3 tokens/day", "None"]


# ---- what is lost, and what it is rebuilt from


def test_nothing_is_admitted_before_its_windows_are_known(env: dict[str, str]) -> None:
    of = budgets(org="1000 tokens/day", user="500 tokens/minute")
    with pytest.raises(BudgetNotRebuilt) as found:
        of.try_reserve(USER, Spend(tokens=1))
    assert found.value.root == ORG
    assert found.value.windows == [("day", ORG), ("minute", USER)]


def test_flush_closes_the_budget_until_it_is_loaded_with_spend_and_open_calls(redis: Redis, env: dict[str, str]) -> None:
    of = budgets(org="1000 tokens/day")
    settled, opened = reserve(of, USER, Spend(tokens=300)), reserve(of, USER, Spend(tokens=400))
    of.settle(USER, settled.id, Spend(tokens=250))
    redis.flushall()
    with pytest.raises(BudgetNotRebuilt):
        of.try_reserve(USER, Spend(tokens=1))
    assert of.settle(USER, opened.id, Spend(tokens=1)) is Outcome.UNKNOWN
    day, window = int(time.time() // 86_400), Window("day", ORG)
    assert of.load(ORG, [Standing(window, [(day, Spend(1, 250, 0)), (day - 1, Spend(9, 9999, 0))])],
                   [OpenCall(opened.id, 60, opened.estimate, [(window, day)])]) == 1  # fmt: skip
    assert spent(of, ORG) == (2, 650, 0, 1, 400, 0)
    assert not reserve(of, USER, Spend(tokens=351))
    assert of.settle(USER, opened.id, Spend(tokens=100)) is Outcome.SETTLED
    assert spent(of, ORG) == (2, 350, 0, 0, 0, 0)


def test_window_that_is_known_is_not_loaded_over(env: dict[str, str]) -> None:
    of = budgets(org="1000 tokens/day")
    reserve(of, USER, Spend(tokens=300))
    assert of.load(ORG, [Standing(Window("day", ORG), [])]) == 0
    assert spent(of, ORG)[1] == 300


def test_restored_call_that_is_reserved_again_is_decided_again_and_counted_once(redis: Redis, env: dict[str, str]) -> None:
    of, window, day = budgets(org="1000 tokens/day"), Window("day", ORG), int(time.time() // 86_400)
    of.load(ORG, [Standing(window, [(day, Spend(1, 700, 0))])], [OpenCall("pending", 60, Spend(1, 400, 0), [(window, day)])])
    assert spent(of, ORG)[1] == 1100
    assert not of.try_reserve(USER, Spend(tokens=400), id="pending"), "it had never been admitted, and does not fit"
    assert spent(of, ORG) == (1, 700, 0, 0, 0, 0)
    assert of.try_reserve(USER, Spend(tokens=300), id="pending")


def test_restarted_redis_is_not_trusted_with_the_counters_it_kept(stack: Stack, redis: Redis, env: dict[str, str]) -> None:
    of = budgets(org="1000 tokens/day")
    reserve(of, USER, Spend(tokens=300))
    with limits().use() as client:
        client.hset(keys.budget(ORG), "run", "of the server that this one is a stale copy of")
    with pytest.raises(BudgetNotRebuilt):
        of.try_reserve(USER, Spend(tokens=1))


@pytest.mark.parametrize("how", ["down", "hung"])
def test_budget_is_closed_while_redis_is_away(how: str, stack: Stack, conf: Callable[..., None]) -> None:
    conf(limits_timeout_ms=40)
    of = budgets(org="1000 tokens/day")
    eventually(lambda: reserve(of, USER, Spend(tokens=1)), 5)
    stack.redis.kill() if how == "down" else stack.redis.freeze()
    started = time.monotonic()
    refusal = of.try_reserve(USER, Spend(tokens=1))
    assert time.monotonic() - started < 1
    assert (bool(refusal), refusal.decision.policy) == (False, "closed")
    with pytest.raises(StoreUnavailable):
        of.settle(USER, refusal.id, Spend(tokens=1))


def test_every_budget_key_has_a_time_to_live_and_a_kind(redis: Redis, env: dict[str, str]) -> None:
    of = budgets(org="1000 tokens/day", user="500 tokens/minute")
    call = reserve(of, USER, Spend(tokens=300))
    of.settle(USER, call.id, Spend(tokens=1))
    found = {key.decode(): redis.pttl(key) for key in redis.scan_iter()}
    assert set(found) == {keys.budget(ORG), keys.budget_calls(ORG)}
    assert min(found.values()) > 31 * 86_400_000


def test_tree_that_a_clock_ahead_of_time_has_changed_is_loaded_anew(redis: Redis, env: dict[str, str]) -> None:
    """While the clock of the server ran ahead it dropped what of today was spent: that must not be spent again."""
    of = budgets(org="1000 tokens/day")
    reserve(of, USER, Spend(tokens=300))
    redis.hset(keys.budget(ORG), "at", int((time.time() + 86_400) * 1_000_000))
    with pytest.raises(BudgetNotRebuilt):
        of.try_reserve(USER, Spend(tokens=1))


def test_many_calls_to_be_forgotten_do_not_keep_one_caller_waiting(redis: Redis, env: dict[str, str]) -> None:
    of = budgets(org="1000 tokens/day")
    reserve(of, USER, Spend(tokens=300))
    redis.zadd(keys.budget_calls(ORG), {f"ended{n}": n for n in range(1200)})
    assert of.try_reserve(USER, Spend(tokens=300))
    assert 0 < redis.zcard(keys.budget_calls(ORG)) - 2 < 1200, "all at once, or none"
    assert eventually(lambda: of.try_reserve(USER, Spend()) and redis.zcard(keys.budget_calls(ORG)) < 20, 5)


@pytest.mark.parametrize("id", ["", "x" * 256, "a\0", "a\nb", "\ud800", 7])
def test_id_that_no_server_could_keep_is_refused(id: Any, env: dict[str, str]) -> None:
    if id != "":  # none given: a new one
        with pytest.raises(InvalidLimit, match=r"^id: "):
            budgets(org="1000 tokens/day").try_reserve(USER, Spend(), id=id)


# ---- races


def test_fifty_callers_never_reserve_beyond_a_cap_and_use_all_of_it(env: dict[str, str]) -> None:
    of = budgets(org="5000 tokens/day", user="600 tokens/day")
    reserve(of, USER, Spend(tokens=0))
    admitted: list[tuple[str, int]] = []

    def caller(number: int) -> None:
        chance, subject = random.Random(number), f"org:acme/user:{number % 10}"
        for _ in range(20):
            tokens = chance.randint(1, 40)
            if reserve(of, subject, Spend(tokens=tokens)):
                admitted.append((subject, tokens))

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(tokens for _, tokens in admitted)
    by_user = {subject: sum(t for s, t in admitted if s == subject) for subject, _ in admitted}
    assert total <= 5000
    assert total > 4900
    assert max(by_user.values()) <= 600
    assert spent(of, ORG)[1] == total
