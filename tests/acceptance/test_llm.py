"""`llm.chat` on real workers: a kill in the middle of a call counts nothing twice, and a limited provider is left alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import House
from tests.harness import Worker, eventually
from tests.llm_server import Api, Handler, answer, refuse, serve
from worker.db import statement
from worker.ledger import limits
from worker.limits import Budgets, Window
from worker.limits.policy import parse_policy
from worker.tasks.llm import llm_chat

#: Seconds; the shortest that a busy machine renews in time.
LEASE_S = 3
HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def served() -> Iterator[Api]:
    """A server as long as the house, whose workers call it."""
    with serve() as api:
        yield api


@pytest.fixture
def api(served: Api) -> Api:
    served.seen.clear()
    return served


@pytest.fixture(autouse=True)
def _budget(house: House) -> None:
    with statement() as conn:
        limits.put(conn, parse_policy("budget org:* 100000 tokens/month"))


def worker(house: House, api: Api, concurrency: int = 1) -> Worker:
    return house.worker(
        concurrency=concurrency,
        env={"HOLDFAST_LLM_BASE_URL": api.url, "HOLDFAST_LLM_LEASE_S": str(LEASE_S), "HOLDFAST_LIMITS_TIMEOUT_MS": "5000"},
    )


def send(subject: str) -> str:
    job_id: str = llm_chat.delay(HELLO, model="small", subject=subject).id
    return job_id


def standing(root: str) -> tuple[int, ...]:
    """Return what Redis counts: requests, tokens and micros spent, and how much of each is open."""
    level = Budgets(limits.plan()).peek(root)[Window("month", root)]
    return (*level.spent, *level.open)


def test_kill_in_the_middle_of_a_call_gives_its_reservation_back_and_counts_once(house: House, api: Api) -> None:
    def silent(handler: Handler) -> None:
        time.sleep(60)

    api.replies = [silent, answer(tokens_in=12, tokens_out=5)]
    victim = worker(house, api)
    job_id = send("org:killed")
    eventually(lambda: len(api.seen) == 1, 30, what="the call")
    assert house.sql("SELECT job_id, expires_at > clock_timestamp() FROM usage_reservations") == [(job_id, True)]
    assert Budgets(limits.plan()).open_calls("org:killed") == 1
    for process in victim.tree():
        os.kill(process.pid, signal.SIGKILL)
    killed = time.monotonic()
    eventually(lambda: Budgets(limits.plan()).open_calls("org:killed") == 0, LEASE_S + 1, what="the reservation being given back")
    assert time.monotonic() - killed <= LEASE_S + 1.1
    assert standing("org:killed") == (0, 0, 0, 0, 0, 0)

    worker(house, api)
    house.wait_for(job_id, "succeeded", timeout=40)
    assert house.sql("SELECT attempt, result->>'content' FROM job_history WHERE id = %s", job_id) == [(2, "Hello")]
    assert house.sql("SELECT job_id, tokens_in, tokens_out FROM usage WHERE root = 'org:killed'") == [(job_id, 12, 5)]
    assert standing("org:killed") == (1, 17, 0, 0, 0, 0)


def test_jobs_leave_a_provider_alone_for_as_long_as_it_asks(house: House, api: Api) -> None:
    called: list[float] = []

    def timed(reply: Any) -> Any:
        return lambda handler: (called.append(time.monotonic()), reply(handler))

    api.replies = [timed(refuse(429, headers={"retry-after": "3"})), timed(answer())]
    worker(house, api)
    ids = [send("org:patient") for _ in range(6)]
    for job_id in ids:
        house.wait_for(job_id, "succeeded", timeout=40)
    assert len(called) == 7
    assert called[1] - called[0] >= 2.9, "nobody called in between"
    assert house.sql("SELECT DISTINCT attempt FROM job_history WHERE id = ANY(%s)", ids) == [(1,)]
    assert house.sql("SELECT count(*), sum(tokens_in + tokens_out) FROM usage WHERE root = 'org:patient'") == [(6, 6 * 17)]
    assert standing("org:patient") == (6, 6 * 17, 0, 0, 0, 0)
