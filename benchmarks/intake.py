"""Measure the doors that take many jobs: accepted jobs a second, durable, and the way from a door to the start of a job.

Each run begins with an empty database. Postgres syncs each commit to disk; Redis appends to its file and syncs every second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import psycopg
from redis import Redis

from benchmarks.support import (
    Program,
    Report,
    Servers,
    console,
    create_database,
    drop_database,
    eventually,
    options,
    percentile,
    rounds,
    servers,
)  # fmt: skip
from worker.store import keys

#: What each durable door is to take in, in jobs a second.
LEAST = 10_000.0
#: The longest that an idle system may take from an entry to the start of its job, in milliseconds at the 99th percentile.
LONGEST_MS = 100.0
TASK = "benchmarks.peers.holdfast.noop"

_COUNT = "SELECT count(*) FROM jobs"


def fresh(here: Servers) -> tuple[str, dict[str, str]]:
    """Empty the servers and make an empty database; return its URL, and the environment that leads there."""
    here.flush()
    drop_database(here.stack.postgres.url, "intake")
    url = create_database(here.stack.postgres.url, "intake", "intake_prepared")
    return url, {"HOLDFAST_INCLUDE": "benchmarks.peers.holdfast", **here.env(url)}


def stream_rate(here: Servers, jobs: int, *, keyed: bool = False, called: bool = False) -> float:
    """Return jobs a second from the first commit of a relay to the last, of entries that lie ready."""
    url, env = fresh(here)
    with Redis.from_url(here.stack.redis.url) as client:
        for at in range(0, jobs, 1000):
            pipe = client.pipeline(transaction=False)
            for number in range(at, min(at + 1000, jobs)):
                fields = {"task": TASK, "args": "[]", **({"key": f"key-{number}"} if keyed else {})}
                pipe.xadd(keys.intake(), {**fields, **({"caller": "bench"} if called else {})})
            pipe.execute()
    relay = Program("-m", "worker.cli", "relay", name="relay", env=env).start()
    try:
        return _rate(url, jobs)
    finally:
        relay.kill_tree()


def _rate(url: str, jobs: int) -> float:
    """Watch the rows come in; return jobs a second between the first look that sees some and the last."""
    with psycopg.connect(url, autocommit=True) as conn:

        def count() -> int:
            row = conn.execute(_COUNT).fetchone()
            assert row is not None
            return int(row[0])

        first = eventually(count, 60, what="the first job", every=0.005)
        start = time.perf_counter()
        eventually(lambda: count() >= jobs, 120, what=f"{jobs} jobs", every=0.05)  # each look reads all rows
        rate = (jobs - first) / (time.perf_counter() - start)
    console.print(f"[dim]{rate:,.0f} jobs/s[/]")
    return rate


def stream_latencies(here: Servers, jobs: int) -> list[float]:
    """Return the milliseconds from XADD to the start of a job on an idle system, one job after the other."""
    url, env = fresh(here)
    relay = Program("-m", "worker.cli", "relay", name="relay", ready=r"\bready\b", env=env).start()
    worker = Program(
        "-m", "celery", "-A", "worker.app", "worker", "-l", "INFO", "-P", "threads", "-c", "2",
        "--without-gossip", "--without-mingle", name="worker", ready=r"@\S+ ready\b", env=env,
    ).start()  # fmt: skip
    found: list[float] = []
    try:
        with Redis.from_url(here.stack.redis.url) as client, psycopg.connect(url, autocommit=True) as conn:
            for number in range(jobs):
                before = conn.execute("SELECT clock_timestamp()").fetchone()
                client.xadd(keys.intake(), {"task": TASK, "args": "[]"})
                eventually(lambda n=number: _ended(conn) > n, 10, every=0.01)
                row = conn.execute("SELECT max(started_at) FROM job_history").fetchone()
                assert before is not None
                assert row is not None
                found.append((row[0] - before[0]).total_seconds() * 1000)
    finally:
        worker.kill_tree()
        relay.kill_tree()
    return found[1:]


def _ended(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT count(*) FROM job_history").fetchone()
    assert row is not None
    return int(row[0])


#: What is measured, by name; each takes the servers and a number of jobs and returns jobs a second.
DOORS: dict[str, Callable[[Servers, int], float]] = {
    "stream": stream_rate,
    "stream, each with a key": lambda here, jobs: stream_rate(here, jobs, keyed=True),
    "stream, each with a caller, so with its events": lambda here, jobs: stream_rate(here, jobs, called=True),
}
#: Those that are to reach `LEAST`.
WITH_TARGET = ("stream",)


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    given = parser.parse_args()
    turns, jobs, lone = (1, 20_000, 50) if given.quick else (3, 100_000, 300)
    report = Report(as_json=given.json)
    with servers() as here:
        _prepare(here)
        found = rounds(turns, list(DOORS), lambda name: {"rate": DOORS[name](here, jobs)})
        _tell_rates(report, found)
        latencies = stream_latencies(here, lone)
        report.figure("stream, XADD to start p50 ms", percentile(latencies, 50))
        report.figure("stream, XADD to start p99 ms", percentile(latencies, 99))
        report.target("stream, XADD to start, p99 ms", percentile(latencies, 99), most=LONGEST_MS)
    report.print()


def _prepare(here: Servers) -> None:
    from worker.db import alembic_config

    url = create_database(here.stack.postgres.url, "intake_prepared")
    from alembic import command

    command.upgrade(alembic_config(url), "head")


def _tell_rates(report: Report, found: dict[str, dict[str, list[float]]]) -> None:
    rows: list[list[Any]] = []
    for name, figures in found.items():
        rates = figures["rate"]
        report.figure(f"{name}: jobs/s", statistics.median(rates), 0)
        rows.append([name, round(statistics.median(rates)), f"{min(rates):,.0f} to {max(rates):,.0f}"])
    report.table("jobs accepted a second, durable", ["", "jobs/s", "its rounds"], rows)
    for name, figures in found.items():
        if name not in WITH_TARGET:
            continue
        report.target(f"{name}, jobs/s", statistics.median(figures["rate"]), least=LEAST)


if __name__ == "__main__":
    main()
