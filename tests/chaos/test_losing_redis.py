"""Redis flushed, restarted without its disk, cut off, full, or gone: nothing is lost and nothing doubled."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
from redis import Redis

from tests.chaos import support, tasks
from tests.chaos.conftest import Start
from tests.chaos.support import assert_all_done_once, sized
from tests.harness import Worker, eventually
from worker.app import enqueue_many
from worker.embedded import Stack

QUEUED = sized(600, 10_000)
RUNNING = sized(8, 200)
#: Jobs for the faults that the issue gives no number for.
FEW = sized(300, 3_000)
#: Seconds after a loss within which the first job that was lost from the queue must start.
RESTART_S = 5.0
#: A loss is to be noticed by the epoch of the broker, not by the audit, which would see it as well, later.
SETTINGS = {"HOLDFAST_AUDIT_AFTER_S": "5.0"}
#: Seconds in which the jobs of a test must end.
END_S = sized(40.0, 300.0)


@pytest.fixture(scope="module")
def fleet(arena: Start) -> list[Worker]:
    """Workers that run as many jobs at once as the test of a flush wants."""
    workers = [support.worker("threads", RUNNING // sized(1, 2)) for _ in range(sized(1, 2))]
    arena(*workers)
    return workers


@pytest.fixture(autouse=True)
def _fleet_lives(fleet: list[Worker]) -> Iterator[None]:
    """No fault of Redis ends a worker."""
    yield
    assert all(worker.running for worker in fleet)


def _fill(rng: random.Random) -> list[str]:
    """Enqueue so many jobs that all slots are taken and the queue is full; return their ids."""
    running = enqueue_many(tasks.write, [("running", rng.uniform(1.0, 2.5)) for _ in range(RUNNING)], priority=0)
    eventually(lambda: len(support.running(running)) == RUNNING, 30, what="all slots taken")
    return running + enqueue_many(tasks.write, [("queued", rng.uniform(0.0, 0.02)) for _ in range(QUEUED)])


@pytest.mark.parametrize("both", [False, True], ids=["coordination", "both-servers"])
def test_a_flush_with_many_queued_and_some_running_loses_and_doubles_nothing(
    rng: random.Random, broker: Redis, results: Redis, both: bool
) -> None:
    ids = _fill(rng)
    time.sleep(rng.uniform(0.0, 0.5))
    since = support.now()
    if both:
        results.flushall()
    lost = support.peek(broker, wipe=True)
    assert len(lost) >= min(QUEUED, 1_000) // 2, "the flush must hit a full queue"
    support.wait_until_ended(ids, END_S)
    assert_all_done_once(ids)
    assert support.seconds_until_start(lost, since) <= RESTART_S


def test_a_restart_without_disk_loses_and_doubles_nothing(rng: random.Random, stack: Stack, broker: Redis) -> None:
    ids = _fill(rng)
    time.sleep(rng.uniform(0.0, 0.5))
    queued = support.peek(broker)
    stack.redis.restart(without_disk=True)
    since = support.now()
    assert len(queued) >= min(QUEUED, 1_000) // 2, "the restart must lose a full queue"
    support.wait_until_ended(ids, END_S)
    assert_all_done_once(ids)
    assert support.seconds_until_start(queued, since) <= RESTART_S


def test_cutting_every_connection_again_and_again_loses_and_doubles_nothing(rng: random.Random, broker: Redis) -> None:
    ids = enqueue_many(tasks.write, [("cut", rng.uniform(0.0, 0.05)) for _ in range(FEW)])
    for _ in range(sized(5, 20)):
        time.sleep(rng.uniform(0.05, 0.4))
        broker.client_kill_filter(_type="normal", skipme=True)
    support.wait_until_ended(ids, END_S)
    assert_all_done_once(ids)


def test_a_full_redis_keeps_jobs_in_postgres_until_there_is_room(rng: random.Random, arena: Start, broker: Redis) -> None:
    busy = enqueue_many(tasks.write, [("busy", rng.uniform(0.5, 1.5)) for _ in range(RUNNING)])
    eventually(lambda: len(support.running(busy)) == RUNNING, 30, what="all slots taken")
    newcomer = support.worker("solo", 1)
    broker.config_set("maxmemory", 1)
    try:
        ids = [tasks.write.delay("full").id for _ in range(20)]
        arena(newcomer)
        support.wait_until_ended(busy)
        assert newcomer.running
        assert support.one("SELECT count(*) FROM jobs WHERE id = ANY(%s) AND attempt = 0", ids) == len(ids)
        assert not support.peek(broker), "a full Redis takes no message"
    finally:
        broker.config_set("maxmemory", 0)
    support.wait_until_ended(ids)
    newcomer.kill_tree()
    assert_all_done_once(busy + ids)


@pytest.mark.parametrize("frozen", [False, True], ids=["stopped", "frozen"])
def test_a_job_is_accepted_while_redis_is_away_and_sent_when_it_is_back(stack: Stack, frozen: bool) -> None:
    first = tasks.write.delay("before").id
    if frozen:
        stack.redis.freeze()
    else:
        stack.redis.kill()
    started = time.monotonic()
    ids = [tasks.write.delay("away").id for _ in range(10)]
    took = time.monotonic() - started
    assert support.one("SELECT count(*) FROM jobs WHERE id = ANY(%s)", ids) == len(ids)
    stack.redis.thaw()
    stack.redis.start()
    assert took < (4.0 if frozen else 1.0)
    support.wait_until_ended([first, *ids])
    assert_all_done_once([first, *ids])
