"""The lock of a job: which deliveries it keeps out, and which it must not."""

from __future__ import annotations

from redis import Redis

from tests import sample_tasks as tasks
from tests.integration.conftest import Bench
from worker.store import keys

LIFE_MS = 10_000
#: Less than the pause before the second try, so that this finds the lock free however slow the machine is.
MOMENT_MS = 15


def test_a_delivery_that_meets_the_lock_of_a_running_one_is_dropped_and_the_job_stays(bench: Bench, redis: Redis) -> None:
    job = tasks.add.delay(1, 2)
    redis.set(keys.job_lock(job.id), "another", px=LIFE_MS)
    bench.work()
    assert job.status == "PENDING"
    assert redis.get(keys.job_lock(job.id)) == b"another"


def test_a_delivery_that_meets_the_lock_of_a_stale_copy_for_a_moment_runs(bench: Bench, redis: Redis) -> None:
    """Dropped for that, the job would wait for the audit: the copy lets go as soon as its claim has failed."""
    job = tasks.add.delay(1, 2)
    message = bench.take()
    assert message
    redis.set(keys.job_lock(job.id), "a stale copy", px=MOMENT_MS)
    bench.run(message)
    assert job.get(timeout=5) == 3
