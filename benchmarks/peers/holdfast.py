"""Holdfast as it comes: its defaults, one relay, one worker."""

from __future__ import annotations

import os
import time

from sqlalchemy import event, text

from benchmarks import effects, meter
from worker.app import app, enqueue_in, enqueue_many
from worker.db import session
from worker.engine.task import Task

TITLE = "Holdfast"
PACKAGE = "holdfast"
SETUP = "prefork 2, one relay"
WORKER = ("-m", "celery", "-A", "worker.app", "worker", "-c", "2", "-l", "WARNING",
          "--without-gossip", "--without-mingle", "--without-heartbeat")  # fmt: skip
HELPERS = (("-m", "worker.cli", "relay"),)


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


@app.task(bind=True, ignore_result=True)
def work(self: Task, job: int, seconds: float) -> None:
    """Take some time and have one effect, in the session that commits with the job's end."""
    effects.run(job, seconds)
    self.session.execute(text(effects.EFFECT), {"job": job})


_task = kept if os.environ.get("BENCH_RESULTS") else noop


def prepare() -> None:
    """Create the tables and today's partition."""
    from worker.db import statement, upgrade
    from worker.ledger import history

    upgrade()
    with statement() as conn:
        history.keep_up(conn)


def delay(n: int) -> None:
    """Enqueue n no-ops."""
    for _ in range(n):
        _task.delay()


def many(n: int) -> None:
    """Enqueue n no-ops in one transaction."""
    enqueue_many(_task, [()] * n)


def delay_one(job: int) -> float:
    """Enqueue a job that leaves the moment of its start; return the moment before that."""
    now = time.time()
    stamp.delay(job)
    return now


def commit_one(job: int) -> float:
    """Do so in a transaction; return the moment at which that had committed."""
    committed: list[float] = []
    with session() as mine:
        event.listen(mine, "after_commit", lambda _: committed.append(time.time()))  # heard before the job is published
        with enqueue_in(mine):
            stamp.delay(job)
        mine.commit()
    return committed[0]
