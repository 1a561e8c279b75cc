"""Measure the cache beside dogpile.cache, cashews, aiocache and a bare GET: stampedes, hot keys, races, deaths, hits; and what it
spares Postgres and survives by itself.

Systems take turns within a round. The peers are set up as soundly as their documentation tells; how stands in the first table.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import cache_flush, cache_polling
from benchmarks.cache_peers import LOCK_S, NAMES
from benchmarks.cache_peers.hits import BARE, BARE_ASYNC
from benchmarks.fleet import members, together
from benchmarks.support import Report, Servers, console, options, percentile, ratio, rounds, servers, told_by
from worker.engine.beat import WARM_EVERY_S

#: Processes and callers of each that ask for a cold key at one moment, and the seconds its load takes.
CROWD, CALLERS, LOAD_S = 4, 100, 0.3
#: Processes and callers of each that read a hot key, reads a second of all together, and its ttl in seconds.
STEADY, READERS, RATE, TTL_S = 2, 10, 1000, 2.0
#: Callers that wait for a holder that is killed, and seconds after which their waiting is given up.
WAITING, GIVEN_UP_S = 20, 30.0
#: Our own.
OURS = ("holdfast", "holdfast_async")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int
    steady_s: float
    interleavings: int
    kills: int
    blocks: int
    reads: int
    polling_s: float
    rows: int
    flush_s: float
    warm_every_s: float


FULL = Size(3, 60.0, 4800, 5, 60, 200, 10.0, 10_000, 60.0, WARM_EVERY_S)
QUICK = Size(2, 10.0, 800, 2, 20, 100, 6.0, 1000, 15.0, 5.0)


class Bench:
    """One run: the servers, the systems that are installed, the figures."""

    def __init__(self, here: Servers, report: Report, size: Size, seed: int, systems: list[str]) -> None:
        self.here, self.report, self.size, self.seed = here, report, size, seed
        about = {name: told_by("-m", "benchmarks.cache_peers", name, "about", "{}", env={}) for name in systems}
        self.about = {name: found for name, found in about.items() if "missing" not in found}
        rows = [[one["title"], one["version"], one["setup"], one["early"] or "no"] for one in self.about.values()]
        rows += [[name, "not installed", "", ""] for name, found in about.items() if "missing" in found]
        report.table("the caches", ["", "version", "set up with", "renews hot values"], rows)

    def command(self, name: str, verb: str, **what: Any) -> list[str]:
        """Return the command line of one process."""
        return ["-m", "benchmarks.cache_peers", name, verb, json.dumps(what)]

    def titled(self, name: str) -> str:
        """Return how a system is called in tables and figures."""
        title: str = self.about[name]["title"] if name in self.about else name
        return title

    def told(self, part: str, columns: dict[str, str], found: dict[str, dict[str, list[float]]], worst: bool = False) -> None:
        """Keep a table of medians, or of the worst of all rounds, and its figures."""
        rows = []
        for name, figures in found.items():
            values = {what: (max if worst else statistics.median)(figures[what]) for what in columns}
            for what, value in values.items():
                self.report.figure(f"{part}, {self.titled(name)}: {columns[what]}", value)
            rows.append([self.titled(name), *(f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" for value in values.values())])
        self.report.table(part, ["", *columns.values()], rows)

    def target(self, name: str, what: str, value: float, most: float) -> None:
        """Keep the verdict on one of our own figures."""
        self.report.target(f"{self.titled(name)}: {what}", value, most=most)

    @property
    def ours(self) -> list[str]:
        """Our own of the systems, of which the targets speak."""
        return [name for name in self.about if name in OURS]


# ---- the parts


def cold(bench: Bench) -> None:
    """One cold key, asked for by processes full of callers at one moment."""

    def measure(name: str) -> dict[str, float]:
        bench.here.flush()
        told = together([bench.command(name, "crowd", callers=CALLERS, load_s=LOAD_S)] * CROWD)
        took = [seconds for one in told for seconds in one["took"]]
        return {
            "loads": sum(one["loads"] for one in told), "over": 1000 * (percentile(took, 99) - LOAD_S),
            "slowest": 1000 * (max(took) - LOAD_S), "errors": sum(len(one["errors"]) for one in told),
        }  # fmt: skip

    found = rounds(bench.size.rounds, list(bench.about), measure)
    columns = {"loads": "loads", "over": "p99 over the load, ms", "slowest": "slowest over the load, ms", "errors": "errors"}
    bench.told(f"a cold key, {CROWD} × {CALLERS} callers, load of {LOAD_S:g} s", columns, found)
    for name in bench.ours:
        bench.target(name, "loads of a cold key", max(found[name]["loads"]), most=1)
        bench.target(name, "p99 over the load, ms", statistics.median(found[name]["over"]), most=100)


def hot(bench: Bench) -> None:
    """One hot key, read at a steady rate over many of its lives."""
    seconds = bench.size.steady_s

    def measure(name: str) -> dict[str, float]:
        bench.here.flush()
        what = {"callers": READERS, "every_s": STEADY * READERS / RATE, "seconds": seconds, "load_s": LOAD_S, "ttl": TTL_S}
        told = together([bench.command(name, "steady", **what)] * STEADY)
        return {
            "reads": sum(one["reads"] for one in told) / seconds, "waited": sum(one["waited"] for one in told),
            "cycle": sum(one["loads"] for one in told) / (seconds / TTL_S), "oldest": max(one["oldest_s"] for one in told),
            "p99": max(one["p99_ms"] for one in told), "errors": sum(len(one["errors"]) for one in told),
        }  # fmt: skip

    found = rounds(1, list(bench.about), measure)
    columns = {
        "reads": "reads/s", "waited": "reads that waited", "cycle": "loads a ttl", "oldest": "oldest value, s", "p99": "p99, ms",
        "errors": "errors",
    }  # fmt: skip
    bench.told(f"a hot key, ttl of {TTL_S:g} s, load of {LOAD_S:g} s, {seconds:g} s", columns, found)
    for name in bench.ours:
        bench.target(name, "reads of a hot key that waited", max(found[name]["waited"]), most=0)
        bench.target(name, "loads of a hot key a ttl", max(found[name]["cycle"]), most=1.2)


def race(bench: Bench) -> None:
    """A reader loads, a writer commits and invalidates, the reader fills: two processes, at seeded moments."""
    number = bench.size.interleavings

    def measure(name: str) -> dict[str, float]:
        bench.here.flush()
        truth = bench.here.folder / "truth"
        truth.write_bytes(b"\1" * number)
        what = {"seed": str(bench.seed), "number": number, "truth": str(truth)}
        reader, writer = together([bench.command(name, "race", role=role, **what) for role in ("reader", "writer")])
        errors = len(reader["errors"]) + len(writer["errors"])
        return {"at_once": writer["at_once"], "stale": writer["stale"], "errors": errors}

    found = rounds(1, list(bench.about), measure)
    columns = {"at_once": "stale just after", "stale": "stale just after or a second later", "errors": "errors"}
    bench.told(f"{number:,} keys read while they are written, seed {bench.seed}", columns, found)
    for name in bench.ours:
        bench.target(name, "keys stale after their invalidation", max(found[name]["stale"]), most=0)


def death(bench: Bench) -> None:
    """The process that loads is killed -9 while callers of another wait for it."""
    rng = random.Random(bench.seed)
    moments = [rng.uniform(0.3, LOCK_S - 0.3) for _ in range(bench.size.kills)]
    held = {name: moments.copy() for name in bench.about}

    def measure(name: str) -> dict[str, float]:
        bench.here.flush()
        commands = [bench.command(name, "hold"), bench.command(name, "crowd", callers=WAITING, load_s=0.05)]
        with members(commands) as (holder, watcher):
            holder.begin(time.time())
            holder.await_line("loading")
            watcher.begin(time.time())
            time.sleep(held[name].pop())
            holder.kill()
            killed = time.time()
            told = watcher.told(GIVEN_UP_S)
        if told is None:
            return {"next": GIVEN_UP_S, "loads": 0, "errors": WAITING}
        return {"next": max(0.0, told["first"] - killed), "loads": told["loads"], "errors": len(told["errors"])}

    found = rounds(bench.size.kills, list(bench.about), measure)
    columns = {"next": "seconds to the next load", "loads": "loads of those who waited", "errors": "errors"}
    bench.told(f"the one who loads is killed, {WAITING} wait; the worst of {bench.size.kills}", columns, found, worst=True)
    for name in bench.ours:
        bench.target(name, "seconds from a killed load to the next", max(found[name]["next"]), most=LOCK_S)
        bench.target(name, "errors of those who waited for it", max(found[name]["errors"]), most=0)


def hits(bench: Bench) -> None:
    """A kilobyte that is there, read by one process that does nothing else."""
    bench.here.flush()
    command = ["-m", "benchmarks.cache_peers.hits", str(bench.size.blocks), str(bench.size.reads), *bench.about]
    found = told_by(*command, env={})
    bare = {name: BARE_ASYNC if one["async"] else BARE for name, one in bench.about.items()}
    for where, title in (("redis", "a hit of 1 kB"), ("memory", "a hit in the memory of the process")):
        rows = []
        for name, values in found[where].items():
            bench.report.figure(f"{title}, {bench.titled(name)}: µs", statistics.median(values))
            of_bare = ratio(values, found["redis"][bare.get(name, name)])
            last = f"{of_bare:.2f}" if where == "redis" else bench.about[name]["layer"]
            rows.append([bench.titled(name), f"{statistics.median(values):.2f}", f"{percentile(values, 5):.2f}", last])
        bench.report.table(title, ["", "µs", "best 5 %, µs", "of a bare GET" if where == "redis" else "kept true by"], rows)
    for name in bench.ours:
        bench.target(name, f"a hit, of a {bare[name]}", ratio(found["redis"][name], found["redis"][bare[name]]), most=1.25)
        bench.target(name, "a hit in memory, µs", statistics.median(found["memory"][name]), most=5)
        for peer in (peer for peer in bench.about if peer not in OURS and bare[peer] == bare[name]):
            for where, what in (("redis", "a hit"), ("memory", "a hit in memory")):
                bench.target(name, f"{what}, of {bench.titled(peer)}'s", ratio(found[where][name], found[where][peer]), most=1)


def polling(bench: Bench) -> None:
    """A thousand pollers of one job that does not end."""
    bench.here.flush()
    found = cache_polling.measure(bench.here, 1000, bench.size.polling_s)
    columns = {
        "polls": "polls/s", "transactions": "Postgres transactions/s", "loads": "loads/s", "p99_ms": "p99, ms", "wrong": "wrong",
    }  # fmt: skip
    bench.told("1,000 pollers of one job through the result backend", columns, {"holdfast": {k: [v] for k, v in found.items()}})
    bench.target("holdfast", "reads of Postgres a second for 1,000 pollers", found["transactions"], most=2)


def flush(bench: Bench) -> None:
    """FLUSHALL of the cache Redis under readers, a writer and the warmer."""
    size = bench.size
    found = cache_flush.measure(bench.here, size.rows, size.flush_s, size.warm_every_s)
    columns = {
        "reads": "reads", "wrong": "wrong", "errors": "errors", "before": "hit rate before", "lowest": "lowest after",
        "filled_s": "95 % again, s", "writes": "rows written", "advanced": "warmed",
    }  # fmt: skip
    title = f"FLUSHALL with {size.rows:,} hot keys, warming every {size.warm_every_s:g} s"
    bench.told(title, columns, {"holdfast": {what: [value] for what, value in found.items()}})
    bench.target("holdfast", "wrong answers around a flush", found["wrong"] + found["errors"], most=0)
    bench.target("holdfast", "seconds from a flush to 95 % hits", found["filled_s"], most=60)


PARTS: dict[str, Callable[[Bench], None]] = {
    "cold": cold, "hot": hot, "race": race, "death": death, "hits": hits, "polling": polling, "flush": flush,
}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="repeats the moments of races and deaths")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to measure, separated by commas: {', '.join(PARTS)}")
    parser.add_argument("--systems", default=",".join(NAMES), help=f"caches to measure (hits take all): {', '.join(NAMES)}")
    given = parser.parse_args()
    report = Report(as_json=given.json)
    report.figure("seed", given.seed)
    with servers() as here:
        bench = Bench(here, report, QUICK if given.quick else FULL, given.seed, given.systems.split(","))
        for part in given.only.split(","):
            console.print(f"[dim]{part}[/]")
            PARTS[part](bench)
    report.print()


if __name__ == "__main__":
    main()
