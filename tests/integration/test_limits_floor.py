"""Limits and budgets on the server of the stack and on the oldest one promised, and on one that keeps forgetting scripts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from tests.harness import eventually
from worker.embedded import RedisServer
from worker.errors import BudgetNotRebuilt
from worker.limits import Budgets, Limiter, Outcome, Plan, Spend, Standing, Window, try_acquire_all

RATES = ("20/minute", "20/minute fixed", "20/minute burst 20", "20 concurrent lease 1s")


@pytest.fixture
def client(conf: Callable[..., None], server: RedisServer) -> Iterator[Redis]:
    """A client of the server under test, on which a limit may wait for its answer."""
    conf(limits_timeout_ms=5000)
    with Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.mark.parametrize("rate", RATES)
def test_limit_admits_so_many_and_every_key_has_a_life(rate: str, client: Redis) -> None:
    limiter = Limiter(rate, name="floor")
    admitted = [bool(limiter.try_acquire("a", holder=f"h{n}")) for n in range(30)]
    assert admitted == [True] * 20 + [False] * 10
    assert not try_acquire_all([limiter.on("a"), Limiter("1/minute", name="other").on()], holder="late")
    assert Limiter("1/minute", name="other").peek().remaining == 1
    found = list(client.scan_iter("holdfast:*"))
    assert found
    assert min(client.pttl(key) for key in found) > 0
    if "concurrent" in rate:
        assert eventually(lambda: limiter.peek("a").remaining == 20, 5)


def test_life_of_budgeted_calls(client: Redis) -> None:
    of = Budgets(Plan({"org:*": "1000 tokens/month, 50 requests/hour", "org:*/user:*": "500 tokens/minute"}), lease_s=1.5)
    user = "org:acme/user:7"
    with pytest.raises(BudgetNotRebuilt) as found:
        of.try_reserve(user, Spend())
    of.load(found.value.root, [Standing(window, []) for window in found.value.windows])
    first, second = of.reserve(user, Spend(tokens=400)), of.reserve(user, Spend(tokens=100), lease_s=60)
    assert not of.try_reserve(user, Spend(tokens=1))
    assert of.settle(user, first.id, Spend(tokens=50)) is Outcome.SETTLED
    assert of.renew(user, second.id)
    assert of.release(user, second.id) is Outcome.RELEASED
    assert of.peek(user)[Window("month", "org:acme")].spent == Spend(1, 50, 0)
    assert of.reserve(user, Spend(tokens=400))
    assert eventually(lambda: of.open_calls("org:acme") == 0, 10)
    assert min(client.pttl(key) for key in client.scan_iter("holdfast:*")) > 0


def test_scripts_that_are_forgotten_all_the_time_cost_no_decision(client: Redis) -> None:
    limiter, wide = Limiter("100/hour fixed", name="floor"), Limiter("100000/hour fixed", name="wide")
    stop, admitted = threading.Event(), [0] * 8

    def forgetful() -> None:
        while not stop.is_set():
            client.script_flush()
            time.sleep(0.001)

    def caller(number: int) -> None:
        for _ in range(20):
            admitted[number] += bool(try_acquire_all([limiter.on(), wide.on()]))
            limiter.peek()

    flusher = threading.Thread(target=forgetful)
    callers = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
    for thread in (flusher, *callers):
        thread.start()
    for thread in callers:
        thread.join()
    stop.set()
    flusher.join()
    assert sum(admitted) == 100
    assert wide.peek().remaining == 100_000 - 100
