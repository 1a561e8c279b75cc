"""Many pollers of one job that does not end, as any caller polls: `python -m benchmarks.cache_polling JOB POLLERS SECONDS`."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg

from benchmarks.fleet import ready, together
from benchmarks.support import Servers, create_database, told_by
from worker.app import app
from worker.telemetry import CACHE_BYPASSES, CACHE_LOADS

#: Seconds between two looks of one poller: what Celery's own `get` rests between two.
EVERY_S = 0.5
#: Processes over which the pollers are spread.
PROCESSES = 2

_COUNT = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s"


def measure(here: Servers, pollers: int, seconds: float) -> dict[str, float]:
    """Return polls, reads that Postgres saw, by its own count and by ours, each a second, and what went wrong."""
    url = create_database(here.stack.postgres.url, "polling")
    env = {**here.env(url), "HOLDFAST_INCLUDE": "benchmarks.peers.holdfast"}
    told_by("-m", "benchmarks.peers", "holdfast", "prepare", "0", env=env)
    job = told_by("-m", "benchmarks.cache_polling", "accept", env=env)
    here.flush()
    command = ["-m", "benchmarks.cache_polling", job, str(pollers // PROCESSES), str(seconds)]
    before = _transactions(here)
    told = together([command] * PROCESSES, env)
    after = _transactions(here)
    return {
        "polls": sum(one["polls"] for one in told) / seconds, "transactions": (after - before) / seconds,
        "loads": sum(one["loads"] for one in told) / seconds, "wrong": sum(one["wrong"] for one in told),
        "p99_ms": max(one["p99_ms"] for one in told),
    }  # fmt: skip


def _transactions(here: Servers) -> int:
    """Return the transactions of the database so far, once those who have left have told theirs."""
    time.sleep(1.0)
    with psycopg.connect(here.stack.postgres.url, autocommit=True) as conn:
        row = conn.execute(_COUNT, ("polling",)).fetchone()
    assert row is not None
    return int(row[0])


def poll(job: str, pollers: int, seconds: float) -> dict[str, Any]:
    """Ask for the state of a job with so many threads."""
    app.AsyncResult(job).state  # noqa: B018 - what the first one pays for is not what is measured
    start = ready()
    took: list[float] = []
    wrong: list[str] = []

    def one(number: int) -> None:
        due = start + EVERY_S * number / pollers
        while due < start + seconds:
            time.sleep(max(0.0, due - time.time()))
            began = time.perf_counter()
            try:
                state = app.AsyncResult(job).state
            except Exception as exc:
                state = repr(exc)
            took.append(time.perf_counter() - began)
            if state != "PENDING":
                wrong.append(state)
            due += EVERY_S

    with ThreadPoolExecutor(pollers) as pool:
        list(pool.map(one, range(pollers)))
    took.sort()
    loads = CACHE_LOADS.labels("status")._value.get() + CACHE_BYPASSES.labels("status")._value.get()
    return {"polls": len(took), "loads": loads, "wrong": len(wrong), "p99_ms": 1000 * took[len(took) * 99 // 100]}


def main() -> None:
    """Accept the job, or poll it."""
    if sys.argv[1] == "accept":
        from benchmarks.peers.holdfast import noop

        print(json.dumps(noop.apply_async(countdown=86_400).id))
    else:
        print(json.dumps(poll(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))


if __name__ == "__main__":
    main()
