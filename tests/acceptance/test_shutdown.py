"""Stopping: a worker leaves in time, what it cannot finish starts elsewhere at once, and nothing is left hanging."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import sample_tasks as t
from tests.acceptance.conftest import House, Log
from tests.harness import Worker, eventually

#: Seconds beyond the end of its running tasks in which a stopping worker must be gone.
SLACK_S = 3.0
WAIT = 25

Start = Callable[..., Worker]


@pytest.fixture
def start(house: House) -> Iterator[Start]:
    """Start workers that live no longer than the test."""
    started: list[Worker] = []

    def begin(pool: str = "prefork", concurrency: int = 2, **env: str) -> Worker:
        started.append(house.worker(pool, concurrency, env={f"HOLDFAST_{k.upper()}": v for k, v in env.items()}))
        return started[-1]

    yield begin
    for worker in started:
        worker.kill_tree()


def long_job(tmp_path: Path, log: Log, name: str = "gate") -> tuple[Any, Path]:
    """Enqueue a job that runs until its gate is there, wait for its start, and return both."""
    gate, started = tmp_path / name, tmp_path / f"{name}-started"
    result = t.wait_for.delay(str(gate), str(started), str(log))
    eventually(started.exists, WAIT)
    return result, gate


def seconds_to_end(worker: Worker) -> float:
    started = time.monotonic()
    worker.wait(60)
    return time.monotonic() - started


def leave_idle(worker: Worker, house: House) -> None:
    """Stop a worker that has run something and runs nothing now."""
    assert t.add.delay(1, 1).get(timeout=WAIT) == 2
    worker.signal(signal.SIGTERM)
    assert seconds_to_end(worker) < SLACK_S
    assert worker.returncode == 0
    assert house.sql("SELECT count(*) FROM worker_nodes WHERE left_at IS NULL") == [(0,)], "it has said good-bye"


def test_idle_solo_worker_leaves_at_once(start: Start, house: House) -> None:
    leave_idle(start("solo"), house)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_busy_worker_finishes_its_tasks_and_leaves_and_so_does_an_idle_one(
    pool: str, start: Start, house: House, tmp_path: Path, log: Log
) -> None:
    busy = start(pool)
    jobs = [long_job(tmp_path, log, name) for name in ("a", "b")]
    waiting = [t.add.delay(i, i) for i in range(4)]
    busy.signal(signal.SIGTERM)
    time.sleep(1)
    assert busy.running
    for _, gate in jobs:
        gate.touch()
    assert seconds_to_end(busy) < SLACK_S
    assert busy.returncode == 0
    for result, _ in jobs:
        assert result.get(timeout=5) == "done"
    assert len(log.lines) == 2, "each ran once"
    idle = start(pool)
    assert [result.get(timeout=WAIT) for result in waiting] == [0, 2, 4, 6]
    ids = [result.id for result in waiting] + [result.id for result, _ in jobs]
    assert house.sql("SELECT max(attempt) FROM job_history WHERE id = ANY(%s)", ids) == [(1,)]
    leave_idle(idle, house)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_outlives_the_grace_is_handed_back_and_starts_elsewhere_at_once(
    pool: str, start: Start, house: House, tmp_path: Path, log: Log
) -> None:
    leaving = start(pool, shutdown_grace_s="1")
    result, gate = long_job(tmp_path, log)
    staying = start("threads")
    leaving.signal(signal.SIGTERM)
    assert seconds_to_end(leaving) < 1 + SLACK_S
    left = time.monotonic()
    eventually(lambda: len(log.lines) == 2, WAIT, what="the second run")
    assert time.monotonic() - left < 2
    gate.touch()
    assert result.get(timeout=WAIT) == "done"
    assert house.sql("SELECT attempt, crashes, state FROM job_history WHERE id = %s", result.id) == [(2, 0, "succeeded")]
    assert house.sql("SELECT outcome FROM attempts WHERE job_id = %s", result.id) == [("handed back",)]
    assert staying.running
    assert leaving.children() == []


def test_impatient_second_signal_hands_back_at_once(start: Start, house: House, tmp_path: Path, log: Log) -> None:
    leaving = start("prefork")
    result, gate = long_job(tmp_path, log)
    leaving.signal(signal.SIGQUIT)
    assert seconds_to_end(leaving) < SLACK_S
    gate.touch()
    start("threads")
    assert result.get(timeout=WAIT) == "done"
    assert house.sql("SELECT crashes, state FROM job_history WHERE id = %s", result.id) == [(0, "succeeded")]


def test_jobs_taken_but_not_started_are_not_delayed(start: Start, house: House, tmp_path: Path, log: Log) -> None:
    leaving = start("threads", 1, shutdown_grace_s="0.5")
    result, gate = long_job(tmp_path, log)
    behind = [t.add.delay(i, i) for i in range(3)]
    leaving.signal(signal.SIGTERM)
    seconds_to_end(leaving)
    began = time.monotonic()
    gate.touch()
    start("threads")
    assert [job.get(timeout=WAIT) for job in behind] == [0, 2, 4]
    assert time.monotonic() - began < 15, "a message taken by who left is noticed by the audit"
    assert result.get(timeout=WAIT) == "done"


def test_killed_workers_jobs_run_again_and_other_workers_are_not_disturbed(
    start: Start, house: House, tmp_path: Path, log: Log
) -> None:
    victim = start("prefork", 1)
    result, gate = long_job(tmp_path, log)
    other = start("threads", 2)
    undisturbed, other_gate = long_job(tmp_path, log, "other")
    victim.kill_tree()
    eventually(lambda: len(log.lines) == 3, 15, what="the second run of the victim's job")
    for opened in (gate, other_gate):
        opened.touch()
    assert result.get(timeout=WAIT) == undisturbed.get(timeout=WAIT) == "done"
    assert other.running
    assert house.sql("SELECT attempt FROM job_history WHERE id = %s", undisturbed.id) == [(1,)]
