"""Messages taken ahead: none waits behind a long job, none is lost with a child, and none with a worker that is told to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import House
from tests.harness import Worker, eventually
from tests.sample_tasks import add, die, plain, wait_for
from worker.store import keys, script

WAIT = 30
#: Nothing that gets lost is sent again while a test waits for it.
SETTINGS = {"HOLDFAST_AUDIT_AFTER_S": "60"}


def given_back(house: House) -> int:
    """Return how many messages were put back at the head of a list."""
    return int(house.redis.info("commandstats").get("cmdstat_rpush", {}).get("calls", 0))


@pytest.fixture
def workers(house: House) -> Iterator[list[Worker]]:
    """Workers that live no longer than the test."""
    house.redis.config_resetstat()
    house.redis.script_load(script("queue_pop").source)  # which a worker does after its first message
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.kill_tree()


def short_jobs(count: int) -> list[Any]:
    return [add.delay(n, n) for n in range(count)]


def check_done(house: House, jobs: list[Any]) -> None:
    """Wait for short jobs, and see that each ran once."""
    assert [job.get(timeout=WAIT) for job in jobs] == [2 * n for n in range(len(jobs))]
    ids = [job.id for job in jobs]
    eventually(lambda: house.sql("SELECT count(*) FROM job_history WHERE id = ANY(%s)", ids) == [(len(ids),)], WAIT)
    assert house.sql("SELECT DISTINCT attempt FROM job_history WHERE id = ANY(%s)", ids) == [(1,)]


def test_no_message_waits_behind_a_long_job_while_another_worker_is_free(
    house: House, workers: list[Worker], tmp_path: Path
) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    before = short_jobs(20)
    long = wait_for.delay(str(gate), str(started))
    behind = short_jobs(5)
    workers.append(house.worker(concurrency=1))
    eventually(started.exists, WAIT, what="the long job")
    eventually(lambda: given_back(house) > 0, 5, what="the message behind it given back")
    eventually(lambda: house.redis.llen(keys.queue("default", 3)) == len(behind), 5, what="all behind it in their queue")
    assert not any(house.redis.exists(keys.job_lock(job.id)) for job in behind)
    so_far = given_back(house)
    time.sleep(0.3)
    assert given_back(house) == so_far, "a child whose job is long is given nothing ahead"

    workers.append(house.worker(concurrency=1))
    check_done(house, behind)
    assert house.state(long.id) == "running"
    gate.touch()
    check_done(house, before)
    house.wait_for(long.id, "succeeded")


def test_messages_that_wait_for_a_child_that_dies_are_run_by_others(house: House, workers: list[Worker]) -> None:
    before, poison, behind = short_jobs(20), die.delay(), short_jobs(20)
    workers.append(house.worker(concurrency=2))
    check_done(house, before)
    check_done(house, behind)
    house.wait_for(poison.id, "discarded", timeout=WAIT)


def test_messages_that_wait_for_a_child_that_is_replaced_are_run_by_the_next(house: House, workers: list[Worker]) -> None:
    jobs = short_jobs(30)
    workers.append(house.worker("prefork", 1, "--max-tasks-per-child", "4"))
    check_done(house, jobs)


def test_messages_without_a_row_are_taken_ahead_and_given_back_like_others(
    house: House, workers: list[Worker], tmp_path: Path
) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    before = [plain.delay(n) for n in range(20)]
    long = wait_for.apply_async((str(gate), str(started)), durable=False)
    behind = [plain.delay(n) for n in range(3)]
    workers.append(house.worker(concurrency=1))
    eventually(started.exists, WAIT, what="the long job")
    eventually(lambda: given_back(house) > 0, 5, what="the message behind it given back")
    workers.append(house.worker(concurrency=1))
    assert [job.get(timeout=WAIT) for job in (*before, *behind)] == [*range(20), *range(3)]
    assert not long.ready()
    gate.touch()
    assert long.get(timeout=WAIT) == "done"


def test_message_that_waits_when_its_worker_is_told_to_stop_starts_elsewhere(
    house: House, workers: list[Worker], tmp_path: Path
) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    short_jobs(20)
    long = wait_for.delay(str(gate), str(started))
    behind = short_jobs(3)
    workers.append(house.worker(concurrency=1))
    eventually(started.exists, WAIT, what="the long job")
    workers[0].signal(signal.SIGTERM)
    workers.append(house.worker(concurrency=1))
    check_done(house, behind)
    assert house.state(long.id) == "running"
    gate.touch()
    house.wait_for(long.id, "succeeded")
