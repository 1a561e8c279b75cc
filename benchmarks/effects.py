"""What jobs do that are counted afterwards: each run leaves a row at once, each effect one when it commits."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import psycopg

TABLES = """
CREATE TABLE bench_runs (job int NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE bench_effects (job int NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
"""
EFFECT = "INSERT INTO bench_effects (job) VALUES (:job)"

_COUNT = """
SELECT (SELECT count(*) FROM bench_runs), (SELECT count(DISTINCT job) FROM bench_runs),
       (SELECT count(*) FROM bench_effects), (SELECT count(DISTINCT job) FROM bench_effects),
       (SELECT extract(epoch FROM max(first))::float8 FROM (SELECT min(at) AS first FROM bench_effects GROUP BY job) AS f)
"""


@lru_cache(maxsize=1)
def _connection(pid: int) -> psycopg.Connection[Any]:
    return psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)


def run(job: int, seconds: float) -> None:
    """Leave a trace of this run at once, and take some time."""
    _connection(os.getpid()).execute("INSERT INTO bench_runs (job) VALUES (%s)", (job,))
    if seconds:
        time.sleep(seconds)


def take_place(job: int) -> None:
    """Have the effect, in a transaction of its own."""
    _connection(os.getpid()).execute(EFFECT.replace(":job", "%s"), (job,))


@dataclass(frozen=True)
class Count:
    """What took place: runs and effects, those of different jobs, and when the last job had its first effect (Unix time)."""

    runs: int
    jobs_run: int
    effects: int
    jobs_done: int
    last_done: float | None


def count(conn: psycopg.Connection[Any]) -> Count:
    """Count what took place so far."""
    row = conn.execute(_COUNT).fetchone()
    assert row is not None
    return Count(*row)
