"""Measure how fast no-op jobs are enqueued, started and run: Holdfast beside bare Celery and other job systems, in one run.

Rounds alternate between the systems; figures are medians of the rounds, and ratios are taken within a round. Every worker has two
processes. Postgres syncs each commit to disk; Redis appends to its file and syncs every second.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import psycopg
from redis import Redis

from benchmarks import meter
from benchmarks.peers import NAMES
from benchmarks.support import (
    Program,
    Report,
    Servers,
    console,
    create_database,
    drop_database,
    options,
    percentile,
    ratio,
    rounds,
    servers,
    told_by,
)  # fmt: skip

#: Seconds without a further job after which a backlog is taken for stuck.
STUCK_S = 30.0
#: The two that are also measured with results that are kept.
KEPT = ("bare with results", "holdfast with results")
#: A message as long as that of a no-op.
MESSAGE = b"x" * 900


class Peer:
    """One system: its database, its programs, its figures."""

    def __init__(self, name: str, here: Servers) -> None:
        self.name, self.here = name, here
        self.module, _, kept = name.partition(" with ")
        self.meter = here.folder / f"meter of {name}"
        self.meter.mkdir()
        self._database = name.replace(" ", "_") + "_bench"
        prepared = create_database(here.stack.postgres.url, f"{self._database}_prepared")
        self.env = {"BENCH_METER": str(self.meter), "BENCH_RESULTS": kept, **here.env(prepared)}
        if self.module == "holdfast":
            self.env["HOLDFAST_INCLUDE"] = "benchmarks.peers.holdfast"
        self.about: dict[str, Any] = self.tell("prepare")

    @property
    def installed(self) -> bool:
        """Tell whether its package is there."""
        return "missing" not in self.about

    def tell(self, verb: str, jobs: int = 0) -> Any:
        """Let a process of its own do the enqueueing and return what it told."""
        return told_by("-m", "benchmarks.peers", self.module, verb, str(jobs), env=self.env)

    def reset(self) -> None:
        """Forget what was enqueued and counted."""
        self.here.flush()
        for path in self.meter.iterdir():
            path.unlink()
        drop_database(self.here.stack.postgres.url, self._database)
        self.env |= self.here.env(create_database(self.here.stack.postgres.url, self._database, f"{self._database}_prepared"))

    def start(self) -> list[Program]:
        """Start its worker and what that needs beside it."""
        lines = [self.about["worker"]] * self.about["workers"] + self.about["helpers"]
        return [Program(*line, name=self.module, env=self.env).start() for line in lines]

    def drain(self, jobs: int) -> float:
        """Run a backlog of so many jobs to its end and return jobs a second, from the start of the first to that of the last."""
        programs = self.start()
        try:
            reached, since = 0, time.monotonic()
            while (seen := meter.read(self.meter)).calls < jobs:
                if seen.calls > reached:
                    reached, since = seen.calls, time.monotonic()
                if time.monotonic() - since > STUCK_S:
                    raise RuntimeError(f"{self.name}: stuck at {reached} of {jobs}\n" + "\n".join(p.tail() for p in programs))
                time.sleep(0.05)
            return seen.rate
        finally:
            _kill(programs)

    def measure(self, few: int, backlog: int) -> dict[str, float]:
        """Return one round of rates: calls of `.delay()`, calls in bulk, and jobs run, each a second."""
        found = {}
        if self.name not in KEPT:
            self.reset()
            found["delay"] = few / self.tell("delay", few)["seconds"]
        self.reset()
        told = self.tell("many", backlog)
        found["many"] = backlog / told["seconds"]
        found["worker"] = self.drain(told["jobs"])
        return found

    def latencies(self, verb: str, jobs: int) -> list[float]:
        """Return the seconds until a job starts on an idle worker, for so many jobs one after the other."""
        self.reset()
        programs = self.start()
        try:
            found: list[float] = self.tell(verb, jobs)
            return found
        finally:
            _kill(programs)


def _kill(programs: list[Program]) -> None:
    for program in programs:
        program.kill_tree()


def limits(here: Servers) -> dict[str, float]:
    """Return what this machine allows at most: one client of Redis, one of Postgres, and the disk."""
    with Redis.from_url(here.stack.redis.url, single_connection_client=True) as client:
        pushed = _rate(2000, lambda: client.lpush("limit", MESSAGE))
        client.delete("limit")
    with psycopg.connect(here.stack.postgres.url, autocommit=True) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS limits (data bytea)")
        committed = _rate(1000, lambda: conn.execute("INSERT INTO limits VALUES (%s)", (MESSAGE,)))
    path = here.folder / "limit"
    with path.open("wb", buffering=0) as file:

        def sync() -> None:
            os.pwrite(file.fileno(), MESSAGE * 9, 0)
            os.fdatasync(file.fileno())

        sync()
        synced = _rate(500, sync)
    return {"Redis LPUSH": pushed, "Postgres commit of a row": committed, "fdatasync of 8 kB": synced}


def _rate(times: int, work: Any) -> float:
    start = time.perf_counter()
    for _ in range(times):
        work()
    return times / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--only", default="", help="systems to measure, separated by commas")
    given = parser.parse_args()
    turns, few, backlog, lone = (2, 500, 2000, 100) if given.quick else (5, 1500, 8000, 400)
    report = Report(as_json=given.json)
    with servers() as here:
        wanted = [name for name in (*NAMES, *KEPT) if not given.only or name in given.only.split(",")]
        peers = {name: Peer(name, here) for name in wanted}
        there = [name for name, peer in peers.items() if peer.installed]

        def measure(name: str) -> dict[str, float]:
            return limits(here) if name == "limits" else peers[name].measure(few, backlog)

        found = rounds(turns, ["limits", *there], measure)
        _tell_limits(report, found["limits"])
        _tell_rates(report, peers, found)
        if {"bare", "holdfast"} <= set(there):
            _tell_latencies(report, peers, lone)
            _tell_targets(report, found)
    report.print()


def _tell_limits(report: Report, found: dict[str, list[float]]) -> None:
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, value in medians.items():
        report.figure(f"limit: {name}/s", value, 0)
    rows = [[name, round(value), f"{1e6 / value:,.0f}"] for name, value in medians.items()]
    report.table("what this machine allows, one after the other", ["", "a second", "µs each"], rows)


def _tell_rates(report: Report, peers: dict[str, Peer], found: dict[str, dict[str, list[float]]]) -> None:
    rows = []
    for name, peer in peers.items():
        if not peer.installed:
            rows.append([name, "not installed"])
            report.figure(f"{name}: jobs/s", None)
            continue
        medians = {figure: statistics.median(values) for figure, values in found[name].items()}
        for figure, label in (("worker", "jobs/s"), ("delay", ".delay()/s"), ("many", "in bulk/s")):
            if figure in medians:
                report.figure(f"{name}: {label}", medians[figure], 0)
        title = f"{peer.about['title']} {peer.about['version']}{', results kept' if name in KEPT else ''}"
        spread = f"{min(found[name]['worker']):,.0f} to {max(found[name]['worker']):,.0f}"
        delayed = round(medians["delay"]) if "delay" in medians else None
        rows.append([title, round(medians["worker"]), spread, delayed, round(medians["many"]), peer.about["setup"]])
    report.table("no-op jobs a second", ["", "worker", "its rounds", ".delay()", "in bulk", "worker's setup"], rows)


def _tell_latencies(report: Report, peers: dict[str, Peer], jobs: int) -> None:
    rows = []
    for name, verb, label in (
        ("bare", "delay_one", "bare Celery, .delay() to start"),
        ("holdfast", "delay_one", "Holdfast, .delay() to start"),
        ("holdfast", "commit_one", "Holdfast, commit to start"),
    ):
        console.print(f"[dim]latency: {label}[/]")
        found = [seconds * 1000 for seconds in peers[name].latencies(verb, jobs)]
        middle, high = percentile(found, 50), percentile(found, 99)
        report.figure(f"{label} p50 ms", middle)
        report.figure(f"{label} p99 ms", high)
        rows.append([label, f"{middle:.2f}", f"{high:.2f}"])
    report.table("a job on an idle system, ms", ["", "p50", "p99"], rows)


def _tell_targets(report: Report, found: dict[str, dict[str, list[float]]]) -> None:
    def against_bare(figure: str, kept: str = "") -> float:
        return ratio(found[f"holdfast{kept}"][figure], found[f"bare{kept}"][figure])

    report.target("worker, of bare Celery's", against_bare("worker"), least=1.0)
    if set(KEPT) <= set(found):
        report.target("worker with results, of bare Celery's", against_bare("worker", " with results"), least=1.0)
    report.target(".delay(), of bare Celery's", against_bare("delay"), least=0.5)
    report.target("enqueue_many, of bare apply_async with a held producer", against_bare("many"), least=10.0)


if __name__ == "__main__":
    main()
