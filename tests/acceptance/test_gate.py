"""Limited jobs on real workers: no more at the same time than there are slots, and a killed worker's slots come back."""

from __future__ import annotations

import os
import signal
import time

import pytest
from celery.result import AsyncResult

from tests.acceptance.conftest import House
from tests.harness import eventually
from tests.sample_tasks import crowd, crowd_again, metered
from worker.app import app


def together(spans: list[list[float]]) -> int:
    """Return the most that ran at the same moment."""
    moments = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans], key=lambda m: (m[0], m[1]))
    most = now = 0
    for _, change in moments:
        now += change
        most = max(most, now)
    return most


def done(ids: list[str]) -> list[list[float]]:
    return [AsyncResult(job_id, app=app).get(timeout=30) for job_id in ids]


def slots(house: House, name: str) -> int:
    """Return how many slots of a crowd are held."""
    now = house.redis.time()
    return int(house.redis.zcount(f"holdfast:limit:{{crowd:{name}}}:slots", now[0] * 1_000_000 + now[1], "+inf"))


def test_slot_of_a_job_that_expired_or_was_cancelled_in_the_queue_runs_out(house: House) -> None:
    """No worker is there yet to take them: they hold slots, and end."""
    jobs = [crowd.apply_async(("queued", 1), expires=3), crowd.apply_async(("queued", 1))]
    eventually(lambda: slots(house, "queued") == 2, 10)
    jobs[1].revoke()
    for job, state in zip(jobs, ("expired", "cancelled"), strict=True):
        house.wait_for(job.id, state, timeout=15)
    eventually(lambda: slots(house, "queued") == 0, 5)


def test_no_more_run_together_than_there_are_slots_also_for_longer_than_a_lease(house: House) -> None:
    house.worker(concurrency=4)
    ids = [crowd.delay("slow", 2.5).id, *(crowd.delay("slow", 0.3).id for _ in range(6))]
    spans = done(ids)
    assert together(spans) == 2
    assert [attempt for (attempt,) in house.sql("SELECT attempt FROM job_history WHERE id = ANY(%s)", ids)] == [1] * 7


def test_slots_of_a_killed_worker_come_back_and_its_jobs_run_again(house: House) -> None:
    victim = house.worker(concurrency=2)
    ids = [crowd.delay("killed", 1.5).id for _ in range(4)]
    eventually(lambda: sum(house.state(job_id) == "running" for job_id in ids) == 2, 15)
    for process in victim.tree():
        os.kill(process.pid, signal.SIGKILL)
    house.worker(concurrency=4)
    assert together(done(ids)) <= 2
    assert eventually(lambda: house.redis.zcard("holdfast:limit:{crowd:killed}:slots") == 0, 5)


@pytest.mark.parametrize("end", ["hard limit", "revoked", "retried", "failed"])
def test_slot_is_back_within_its_lease_however_its_job_ended(house: House, end: str) -> None:
    house.worker(concurrency=2)
    task, seconds = (crowd_again, 0.1) if end == "retried" else (crowd, "none" if end == "failed" else 60)
    job = task.apply_async((end, seconds), time_limit=1 if end == "hard limit" else None)
    if end == "revoked":
        eventually(lambda: house.state(job.id) == "running" and slots(house, end) == 1, 15)
        job.revoke(terminate=True)
    house.wait_for(job.id, "succeeded", "failed", "cancelled", timeout=30)
    ended = time.monotonic()
    eventually(lambda: slots(house, end) == 0, 10)
    assert time.monotonic() - ended < 2 + 1, "a slot was left after its lease and a second"


def test_limited_jobs_keep_to_their_rate_while_others_run(house: House) -> None:
    house.worker(concurrency=2)
    ids = [metered.delay(tenant="fast", number=n).id for n in range(50)]
    for job_id in ids:
        house.wait_for(job_id, "succeeded", timeout=30)
    ((taken,),) = house.sql(
        "SELECT extract(epoch FROM max(started_at) - min(started_at))::float8 FROM job_history WHERE id = ANY(%s)", ids
    )
    assert taken >= 1.5, "50 at 20 a second take longer than that"
