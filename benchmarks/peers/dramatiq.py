"""Dramatiq on Redis."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks import meter

TITLE = "Dramatiq"
PACKAGE = "dramatiq"
SETUP = "2 processes of 8 threads"
WORKER = ("-m", "dramatiq", "benchmarks.peers.dramatiq", "-p", "2")

dramatiq.set_broker(RedisBroker(url=os.environ["REDIS_URL"]))


@dramatiq.actor
def noop() -> None:
    """Count the call."""
    meter.tick()


def delay(n: int) -> None:
    """Enqueue n no-ops."""
    for _ in range(n):
        noop.send()


many = delay
