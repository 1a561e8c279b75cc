"""A message in hand: a busy worker takes one ahead of its children, and gives it back before another worker would miss it."""

from __future__ import annotations

import time
from pathlib import Path

from tests.acceptance.conftest import House
from tests.harness import eventually
from tests.sample_tasks import add, wait_for
from worker.store import keys, script


def given_back(house: House) -> int:
    """Return how many messages were put back at the head of a list."""
    return int(house.redis.info("commandstats").get("cmdstat_rpush", {}).get("calls", 0))


def test_no_message_waits_behind_a_long_job_while_another_worker_is_free(house: House, tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    house.redis.script_load(script("queue_pop").source)  # which a worker does after its first message
    before = given_back(house)
    long = wait_for.delay(str(gate), str(started))
    short = [add.delay(n, n) for n in range(5)]
    house.worker(concurrency=1)
    eventually(started.exists, 15, what="the long job")
    eventually(lambda: given_back(house) == before + 1, 5, what="the message in hand given back")
    assert house.redis.llen(keys.queue("default", 3)) == len(short)
    assert not any(house.redis.exists(keys.job_lock(job.id)) for job in short)
    time.sleep(0.3)
    assert given_back(house) == before + 1, "it is taken again only after a message that a child took"

    house.worker(concurrency=1)
    for n, job in enumerate(short):
        assert job.get(timeout=15) == 2 * n
    assert house.state(long.id) == "running"
    gate.touch()
    house.wait_for(long.id, "succeeded")
    assert house.sql("SELECT DISTINCT attempt FROM job_history") == [(1,)]
