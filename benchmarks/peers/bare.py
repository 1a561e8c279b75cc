"""Bare Celery of the same version in its soundest configuration."""

from __future__ import annotations

import os
import time

from celery import Celery

from benchmarks import effects, meter

TITLE = "Celery, bare"
PACKAGE = "celery"
SETUP = "prefork 2, acks_late, prefetch 1, no gossip/mingle/heartbeat"
WORKER = ("-m", "celery", "-A", "benchmarks.peers.bare", "worker", "-c", "2", "-l", "WARNING",
          "--without-gossip", "--without-mingle", "--without-heartbeat")  # fmt: skip

app = Celery("bare", broker=os.environ["REDIS_URL"], backend=os.environ["CACHE_URL"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={
        "socket_timeout": 5, "socket_connect_timeout": 3, "socket_keepalive": True, "health_check_interval": 15,
    },
    task_serializer="json", result_serializer="json", accept_content=["json"],
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
)  # fmt: skip
if "BENCH_VISIBILITY_S" in os.environ:
    # What a lost worker held comes back as soon as bare Celery can bring it back; at full speed this costs most of it.
    visibility_s = float(os.environ["BENCH_VISIBILITY_S"])
    restoring = {"visibility_timeout": visibility_s, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    app.conf.broker_transport_options |= restoring


@app.task(ignore_result=True)
def noop() -> None:
    """Count the call."""
    meter.tick()


@app.task
def kept() -> int:
    """Count the call and return a result that is kept."""
    meter.tick()
    return 1


@app.task(ignore_result=True)
def stamp(job: int) -> None:
    """Leave the moment of the start."""
    meter.stamp(job)


@app.task(ignore_result=True)
def work(job: int, seconds: float) -> None:
    """Take some time and have one effect."""
    effects.run(job, seconds)
    effects.take_place(job)


_task = kept if os.environ.get("BENCH_RESULTS") else noop


def delay(n: int) -> None:
    """Enqueue n no-ops."""
    for _ in range(n):
        _task.delay()


def many(n: int) -> None:
    """Enqueue n no-ops over one held producer."""
    with app.amqp.producer_pool.acquire(block=True) as producer:
        for _ in range(n):
            _task.apply_async(producer=producer)


def delay_one(job: int) -> float:
    """Enqueue a job that leaves the moment of its start; return the moment before that."""
    now = time.time()
    stamp.delay(job)
    return now
