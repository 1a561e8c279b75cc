"""Taskiq on a Redis stream, which acknowledges."""

from __future__ import annotations

import asyncio
import os

from taskiq_redis import RedisStreamBroker

from benchmarks import meter

TITLE = "taskiq"
PACKAGE = "taskiq"
SETUP = "2 processes, stream broker, no results"
WORKER = ("-m", "taskiq", "worker", "benchmarks.peers.taskiq:broker", "-w", "2", "--log-level", "WARNING")

broker = RedisStreamBroker(os.environ["REDIS_URL"], consumer_id="0")  # 0: also what was enqueued before the worker came
_loop = asyncio.Runner()


@broker.task
async def noop() -> None:
    """Count the call."""
    meter.tick()


def delay(n: int) -> None:
    """Enqueue n no-ops."""

    async def send() -> None:
        for _ in range(n):
            await noop.kiq()

    _loop.run(send())


def many(n: int) -> None:
    """Enqueue n no-ops, a hundred on their way at a time."""

    async def send() -> None:
        for start in range(0, n, 100):
            await asyncio.gather(*(noop.kiq() for _ in range(start, min(n, start + 100))))

    _loop.run(send())
