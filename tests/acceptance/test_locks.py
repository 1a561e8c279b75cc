"""Jobs that end in every way while they hold a lock, in real processes: none is left behind its lease."""

from __future__ import annotations

import time
from typing import Any

import psutil
import pytest
from celery.exceptions import TimeLimitExceeded

from tests.acceptance import lock_tasks as t
from tests.acceptance.conftest import House, Log
from tests.harness import Worker, eventually
from worker.locks import picture_of
from worker.settings import settings
from worker.store import keys

INCLUDE = "tests.sample_tasks,tests.acceptance.lock_tasks"
WAIT = 30
#: Seconds after which a lock must be free, however its holder ended.
HEALED_S = 30.0

BOTH = pytest.mark.parametrize("task", [t.in_redis, t.in_postgres], ids=["redis", "postgres"])


@pytest.fixture(scope="module", autouse=True)
def worker(house: House) -> Worker:
    """A prefork worker with two children."""
    return house.worker("prefork", 2, include=INCLUDE)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A lock of the test's own."""
    return str(request.node.name)


def started(log: Log, times: int = 1) -> None:
    eventually(lambda: len(log.lines) >= times, WAIT, what="a body under its lock")


def held(name: str) -> bool:
    found = picture_of(f"matrix:{name}")
    return bool(found.holders or found.waiting or found.in_postgres)


def free_within(name: str, seconds: float) -> None:
    """Wait until nothing of the lock is left."""
    eventually(lambda: not held(name), seconds, what=f"the end of lock matrix:{name}")


@BOTH
def test_lock_is_free_at_once_when_the_job_is_done_and_the_next_runs(house: House, log: Log, name: str, task: Any) -> None:
    first = task.delay(name, str(log), 0.3)
    started(log)
    second = task.delay(name, str(log), 0)
    assert [job.get(timeout=WAIT) for job in (first, second)] == ["stayed", "stayed"]
    assert log.lines == [first.id, second.id]
    free_within(name, 1)


@BOTH
def test_hard_time_limit_leaves_no_lock(house: House, log: Log, name: str, task: Any) -> None:
    job = task.apply_async((name, str(log), 60), time_limit=1)
    started(log)
    assert held(name)
    with pytest.raises(TimeLimitExceeded):
        job.get(timeout=WAIT)
    free_within(name, settings().lease_s + 1)
    assert task.delay(name, str(log), 0).get(timeout=WAIT) == "stayed"


@BOTH
def test_terminated_job_leaves_no_lock(house: House, log: Log, name: str, task: Any) -> None:
    job = task.delay(name, str(log), 60)
    started(log)
    job.revoke(terminate=True)
    house.wait_for(job.id, "cancelled", timeout=WAIT)
    free_within(name, settings().lease_s + 1)


@BOTH
def test_job_that_expires_or_is_cancelled_while_it_waits_leaves_nothing_in_the_queue(
    house: House, log: Log, name: str, task: Any
) -> None:
    first = task.delay(name, str(log), 2)
    started(log)
    waits = task.delay(name, str(log), 0)
    eventually(lambda: house.state(waits.id) == "running", WAIT)
    expires = task.apply_async((name, str(log), 0), expires=1)
    waits.revoke(terminate=True)
    house.wait_for(waits.id, "cancelled", timeout=WAIT)
    assert first.get(timeout=WAIT) == "stayed"
    house.wait_for(expires.id, "expired", "succeeded", timeout=WAIT)
    free_within(name, settings().lease_s + 1)


def test_retried_job_leaves_no_lock(house: House, log: Log, name: str) -> None:
    job = t.retried.delay(name, str(log), 0)
    assert job.get(timeout=WAIT) == "stayed"
    assert log.lines == [job.id, job.id]
    free_within(name, 1)


@BOTH
def test_killed_worker_leaves_no_lock_and_its_job_runs_again_under_it(house: House, log: Log, name: str, task: Any) -> None:
    workers = [house.worker("prefork", 1, include=INCLUDE) for _ in range(2)]
    job = task.delay(name, str(log), 4)
    started(log)
    ((pid,),) = house.sql("SELECT n.pid FROM jobs j JOIN worker_nodes n ON n.id = j.worker_id WHERE j.id = %s", job.id)
    waits = task.delay(name, str(log), 0)
    since = time.monotonic()
    psutil.Process(pid).suspend()  # so that it cannot say good-bye
    for child in psutil.Process(pid).children():
        child.kill()
    psutil.Process(pid).kill()
    assert [waits.get(timeout=WAIT), job.get(timeout=WAIT + 4)] == ["stayed", "stayed"]
    assert time.monotonic() - since < HEALED_S + 4
    assert [house.labels(done.id) for done in (waits, job)] == [["ran"], ["ran"]]
    assert log.lines.count(job.id) == 2, "the killed body did not run again"
    free_within(name, settings().lease_s + 1)
    assert any(worker.running for worker in workers)


def test_in_the_end_no_lock_is_left_at_all(house: House) -> None:
    def left() -> list[str]:
        found = [key.decode() for key in house.redis.scan_iter("holdfast:lock:*")]
        assert all(house.redis.pttl(key) > 0 for key in found if house.redis.exists(key))
        return [key for key in found if not key.endswith(":fence")]

    eventually(lambda: not left(), HEALED_S, what="the end of all locks")
    assert not house.redis.exists(keys.semaphore("any"))
