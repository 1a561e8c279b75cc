"""Huey on Redis."""

from __future__ import annotations

import os

from huey import RedisHuey

from benchmarks import meter

TITLE = "Huey"
PACKAGE = "huey"
SETUP = "2 processes, no results"
WORKER = ("-m", "huey.bin.huey_consumer", "benchmarks.peers.huey.huey", "-k", "process", "-w", "2", "-q")

huey = RedisHuey("bench", url=os.environ["REDIS_URL"], results=False)


@huey.task()
def noop() -> None:
    """Count the call."""
    meter.tick()


def delay(n: int) -> None:
    """Enqueue n no-ops."""
    for _ in range(n):
        noop()


many = delay
