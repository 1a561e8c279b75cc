"""Redis fails over to a stale copy in the middle: limits begin with what that knows, budgets with what Postgres knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests.harness import eventually
from tests.integration.conftest import promoted_on
from worker.embedded import RedisServer, Stack
from worker.ledger import limits, usage
from worker.ledger.usage import Actual
from worker.limits import Budgets, Limiter, Spend, Window
from worker.limits.policy import parse_policy

ORG, USER = "org:acme", "org:acme/user:7"


@pytest.fixture(autouse=True)
def _patient(conf: Callable[..., None]) -> None:
    conf(limits_timeout_ms=2000)


def test_stale_copy_spends_no_budget_twice_and_decides_limits_again(
    stack: Stack, replica: RedisServer, redis: Redis, db: psycopg.Connection[Any]
) -> None:
    limits.put(db, parse_policy("budget org:* 1000 tokens/month"))
    closed, opened = Limiter("5/hour", name="closed"), Limiter("5/hour", name="open", on_outage="open")
    first = usage.reserve(USER, Spend(tokens=200))
    closed.acquire(cost=2)
    assert redis.wait(1, 5000) == 1
    fail_over = promoted_on(stack.redis.port, replica)  # from here on the copy hears nothing more
    usage.settle(first.id, Actual(tokens_in=150))
    second, third = usage.reserve(USER, Spend(tokens=300)), usage.reserve(USER, Spend(tokens=500))
    usage.settle(second.id, Actual(tokens_in=300))
    closed.acquire(cost=3)
    stack.redis.kill()
    refusal, admission = closed.try_acquire(), opened.try_acquire()
    assert (refusal.allowed, refusal.policy) == (False, "closed")
    assert (admission.allowed, admission.policy) == (True, "open")
    assert usage.reserve(USER, Spend(tokens=1)).decision.policy == "closed"
    fail_over()
    assert eventually(lambda: closed.try_acquire(cost=3), 10).policy == "", "the copy knows of two, and decides"
    assert not closed.try_acquire()
    # Of the thousand, 450 are settled and 500 open by the record: the copy knew of 200.
    assert not usage.reserve(USER, Spend(tokens=51))
    assert usage.reserve(USER, Spend(tokens=50), id="rest")
    level = Budgets(limits.plan()).peek(USER)[Window("month", ORG)]
    assert (level.spent.tokens, level.open.tokens) == (1000, 550)
    usage.settle(third.id, Actual(tokens_in=400))
    assert Budgets(limits.plan()).peek(USER)[Window("month", ORG)].spent.tokens == 900
