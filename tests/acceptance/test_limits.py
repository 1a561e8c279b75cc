"""What only processes can do: time limits, termination, deaths of children, and pools that renew their children."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import chord
from celery.exceptions import ChordError, TaskRevokedError, TimeLimitExceeded, WorkerLostError

from tests import sample_tasks as t
from tests.acceptance.conftest import House, Log
from tests.harness import Worker, eventually
from worker.app import app
from worker.db import statement
from worker.ledger import manage
from worker.store import keys

WAIT = 25


@pytest.fixture(scope="module", autouse=True)
def worker(house: House) -> Iterator[Worker]:
    """A prefork worker whose children are renewed after five tasks, and that prefetches more than it runs."""
    worker = house.worker("prefork", 2, "--max-tasks-per-child", "5", "--prefetch-multiplier", "4", "-E")
    yield worker
    assert worker.running, "the worker has outlived all of it"


def got(result: Any) -> Any:
    return result.get(timeout=WAIT)


def test_soft_time_limit_is_raised_in_the_task() -> None:
    assert got(t.soft_limited.delay()) == "noticed"


def test_hard_time_limit_fails_the_job_and_the_child_is_replaced(house: House) -> None:
    result = t.hard_limited.delay()
    with pytest.raises(TimeLimitExceeded):
        got(result)
    assert house.state(result.id) == "failed"
    assert got(t.add.delay(1, 1)) == 2


def test_time_limits_of_a_call_are_heeded() -> None:
    with pytest.raises(TimeLimitExceeded):
        got(t.sleep.apply_async((20,), time_limit=1))


def test_hard_time_limit_in_a_chord_fails_the_chord() -> None:
    result = chord([t.add.s(1, 1), t.hard_limited.s()], t.total.s()).delay()
    with pytest.raises(ChordError, match="TimeLimitExceeded"):
        got(app.AsyncResult(result.id))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_running_job_is_terminated(name: str, house: House, tmp_path: Path) -> None:
    started = tmp_path / "started"
    result = t.wait_for.delay(str(tmp_path / "never"), str(started))
    eventually(started.exists, WAIT)
    app.control.revoke(result.id, terminate=True, signal=name)
    with pytest.raises(TaskRevokedError):
        got(result)
    assert house.state(result.id) == "cancelled"
    assert got(t.add.delay(1, 1)) == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_terminated_job_that_is_replayed_runs(name: str, house: House, tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    result = t.wait_for.delay(str(gate), str(started))
    eventually(started.exists, WAIT)
    app.control.revoke(result.id, terminate=True, signal=name)
    house.wait_for(result.id, "cancelled", timeout=WAIT)
    gate.touch()
    with statement() as conn:
        manage.replay(conn, result.id)
    assert got(app.AsyncResult(result.id)) == "done"
    assert house.sql("SELECT state, attempt FROM job_history WHERE id = %s ORDER BY finished_at", result.id) == [
        ("cancelled", 1), ("succeeded", 2)]  # fmt: skip


def test_duplicates_do_not_make_a_worker_give_away_the_long_job_it_runs(house: House, log: Log, tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    result = t.wait_for.delay(str(gate), str(started), str(log))
    eventually(started.exists, WAIT)
    for _ in range(3):
        house.deliver_again(result.id)
    assert got(t.add.delay(1, 1)) == 2, "the duplicates have been taken"
    # What the node runs by its row and does not know itself, it gives away once that is older than the silence of the dead.
    old = "SELECT claimed_at < clock_timestamp() - interval '6 seconds' FROM jobs WHERE id = %s"
    eventually(lambda: house.sql(old, result.id) == [(True,)], WAIT)
    assert house.redis.exists(keys.job_lock(result.id)), "it still has its lock"
    gate.touch()
    assert got(result) == "done"
    assert len(log.lines) == 1
    assert house.sql("SELECT attempt, crashes FROM job_history WHERE id = %s", result.id) == [(1, 0)]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_death_of_a_child_is_noticed_at_once_and_the_job_runs_again(name: str, house: House, log: Log, tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    result = t.wait_for.delay(str(gate), str(started), str(log))
    eventually(started.exists, WAIT)
    killed = time.monotonic()
    psutil.Process(int(log.lines[0])).send_signal(signal.Signals[name])
    eventually(lambda: len(log.lines) == 2, WAIT, what="the second run")
    assert time.monotonic() - killed < 8, "by its parent, not by an audit or a lease"
    gate.touch()
    assert got(result) == "done"
    assert house.sql("SELECT attempt, crashes, state FROM job_history WHERE id = %s", result.id) == [(2, 1, "succeeded")]
    assert house.sql("SELECT outcome FROM attempts WHERE job_id = %s", result.id) == [("crashed",)]


def test_poison_job_is_discarded_after_three_deaths_and_others_finish(house: House) -> None:
    poison = t.die.delay()
    others = [t.add.delay(i, i) for i in range(10)]
    assert [got(other) for other in others] == [2 * i for i in range(10)]
    with pytest.raises(WorkerLostError):
        got(poison)
    assert house.sql("SELECT state, crashes, attempt FROM job_history WHERE id = %s", poison.id) == [("discarded", 2, 3)]
    ((error,),) = house.sql("SELECT error FROM job_history WHERE id = %s", poison.id)
    assert "died 3 times" in error


def test_task_that_ends_its_process_politely_counts_as_a_death(house: House) -> None:
    result = t.leave.delay()
    house.wait_for(result.id, "discarded", timeout=WAIT)
    assert got(t.add.delay(1, 1)) == 2


def test_children_are_renewed_after_their_number_of_tasks(house: House) -> None:
    pids = [got(t.pid.delay()) for _ in range(24)]
    assert len(set(pids)) >= 3
    assert all(pids.count(pid) <= 5 for pid in set(pids))
    assert os.getpid() not in pids


def test_prefetched_jobs_behind_a_long_one_all_run(house: House, tmp_path: Path) -> None:
    gates = [tmp_path / str(n) for n in range(2)]
    long = [t.wait_for.delay(str(gate), f"{gate}-started") for gate in gates]
    for gate in gates:
        eventually(Path(f"{gate}-started").exists, WAIT)
    short = [t.add.delay(i, i) for i in range(6)]
    eventually(lambda: house.redis.llen("default\x06\x163") == 0, what="the worker prefetching")
    for gate in gates:
        gate.touch()
    assert [got(result) for result in (*long, *short)] == ["done", "done", *(2 * i for i in range(6))]
    assert house.sql("SELECT max(attempt) FROM job_history WHERE id = ANY(%s)", [result.id for result in (*long, *short)]) == [
        (1,)
    ]


def test_unserialisable_error_of_a_task_is_told_all_the_same() -> None:
    with pytest.raises(Exception, match="Odd"):
        got(t.fail_oddly.delay())


def test_every_job_here_has_ended(house: House) -> None:
    eventually(lambda: house.sql("SELECT id, task, state, error FROM jobs") == [], WAIT)
