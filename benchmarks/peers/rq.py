"""RQ without a fork for every job."""

from __future__ import annotations

import os

from redis import Redis
from rq import Queue

from benchmarks import meter

TITLE = "RQ"
PACKAGE = "rq"
SETUP = "2 SimpleWorkers, no results"
WORKER = ("-m", "rq.cli", "worker-pool", "-n", "2", "-q", "-w", "rq.SimpleWorker", "-u", os.environ["REDIS_URL"])

queue = Queue(connection=Redis.from_url(os.environ["REDIS_URL"]))


def noop() -> None:
    """Count the call."""
    meter.tick()


def delay(n: int) -> None:
    """Enqueue n no-ops."""
    for _ in range(n):
        queue.enqueue(noop, result_ttl=0)


def many(n: int) -> None:
    """Enqueue n no-ops in pipelines."""
    for start in range(0, n, 1000):
        queue.enqueue_many([Queue.prepare_data(noop, result_ttl=0) for _ in range(start, min(n, start + 1000))])
