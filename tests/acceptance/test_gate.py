"""Limited jobs on real workers: no more at the same time than there are slots, and a killed worker's slots come back."""

from __future__ import annotations

import os
import signal

from celery.result import AsyncResult

from tests.acceptance.conftest import House
from tests.harness import eventually
from tests.sample_tasks import crowd, metered
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


def test_limited_jobs_keep_to_their_rate_while_others_run(house: House) -> None:
    house.worker(concurrency=2)
    ids = [metered.delay(tenant="fast", number=n).id for n in range(50)]
    for job_id in ids:
        house.wait_for(job_id, "succeeded", timeout=30)
    ((taken,),) = house.sql(
        "SELECT extract(epoch FROM max(started_at) - min(started_at))::float8 FROM job_history WHERE id = ANY(%s)", ids
    )
    assert taken >= 1.5, "50 at 20 a second take longer than that"
