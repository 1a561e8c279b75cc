"""One process of callers of one cache: `python -m benchmarks.cache_peers NAME VERB WHAT`, `WHAT` being the verb's JSON."""

from __future__ import annotations

import json
import mmap
import random
import sys
import time
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from benchmarks.cache_peers.front import Front, Tasks, Threads
from benchmarks.fleet import ready

#: Seconds for which values are kept where their age is not what is measured.
LONG_S = 600
#: A read that took longer than this many seconds waited for a load; a third of the load that is measured.
WAITED_S = 0.1
#: Interleavings that run side by side, and the seconds each has.
LANES, SLOT_S = 16, 0.06


class Source:
    """What is slow: returns the moment it was read, takes so many seconds, and counts."""

    def __init__(self, front: Front, seconds: float) -> None:
        self.loads, self.first = 0, 0.0
        self._front, self._seconds = front, seconds

    async def load(self) -> float:
        """Load."""
        self.loads += 1
        self.first = self.first or time.time()
        await self._front.sleep(self._seconds)
        return time.time()


def crowd(front: Front, callers: int, load_s: float) -> dict[str, Any]:
    """Ask for one cold key with many callers at one moment."""
    source, start = Source(front, load_s), ready()

    async def call() -> tuple[float, str]:
        await front.sleep(start - time.time())
        began, error = time.perf_counter(), ""
        try:
            await front.ask("cold", source.load)
        except Exception as exc:
            error = repr(exc)
        return time.perf_counter() - began, error

    called = front.run([call() for _ in range(callers)])
    return {
        "loads": source.loads, "first": source.first, "took": [took for took, _ in called],
        "errors": [error for _, error in called if error],
    }  # fmt: skip


def steady(front: Front, callers: int, every_s: float, seconds: float, load_s: float) -> dict[str, Any]:
    """Read one hot key at a steady rate."""
    source = Source(front, load_s)
    front.run([front.ask("hot", source.load)])
    primed, start = source.loads, ready()
    took: list[float] = []
    ages: list[float] = []
    errors: list[str] = []

    async def call(number: int) -> None:
        due = start + every_s * number / callers
        while due < start + seconds:
            await front.sleep(due - time.time())
            began = time.perf_counter()
            try:
                read_at = await front.ask("hot", source.load)
                ages.append(time.time() - read_at)
            except Exception as exc:
                errors.append(repr(exc))
            took.append(time.perf_counter() - began)
            due = max(due + every_s, time.time() - 1)

    front.run([call(number) for number in range(callers)])
    took.sort()
    return {
        "reads": len(took), "loads": source.loads - primed, "waited": sum(one > WAITED_S for one in took), "errors": errors,
        "oldest_s": max(ages), "p99_ms": 1000 * took[len(took) * 99 // 100],
    }  # fmt: skip


class Interleaving:
    """The moments of one reader and one writer of one key, in seconds after their slot began, drawn from a seed."""

    def __init__(self, seed: str, number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        self.key = f"race{number}"
        self.reads = rng.uniform(0, 0.010)
        self.before, self.after = rng.uniform(0, 0.010), rng.uniform(0, 0.015)
        self.writes = rng.uniform(0, 0.035)


def race(front: Front, role: str, seed: str, number: int, truth: str) -> dict[str, Any]:
    """Be the reader or the writer of many keys, whose truth is a byte each of a file: 1, and 2 once written.

    The writer commits, invalidates, and from then on looks for what is older than that: at once, and when all is over.
    """
    with Path(truth).open("r+b") as file:
        bytes_ = mmap.mmap(file.fileno(), number)
    start = ready()
    stale: set[int] = set()
    errors: list[str] = []

    async def read(i: int, plan: Interleaving) -> None:
        async def load() -> int:
            await front.sleep(plan.before)
            seen = bytes_[i]
            await front.sleep(plan.after)
            return seen

        await front.ask(plan.key, load)

    async def look(i: int, plan: Interleaving) -> None:
        async def load() -> int:
            return bytes_[i]

        if await front.ask(plan.key, load) < 2:
            stale.add(i)

    async def write(i: int, plan: Interleaving) -> None:
        bytes_[i] = 2
        await front.delete(plan.key)
        await look(i, plan)

    async def lane(first: int, do: Any) -> None:
        for i in range(first, number, LANES):
            plan = Interleaving(seed, i)
            if do is not look:
                begins = plan.reads if do is read else plan.writes
                await front.sleep(start + i // LANES * SLOT_S + begins - time.time())
            try:
                await do(i, plan)
            except Exception as exc:
                errors.append(repr(exc))

    front.run([lane(first, read if role == "reader" else write) for first in range(LANES)])
    if role == "writer":
        at_once = len(stale)
        time.sleep(1.0)
        front.run([lane(first, look) for first in range(LANES)])
        return {"at_once": at_once, "stale": len(stale), "errors": errors}
    return {"errors": errors}


def hold(front: Front) -> dict[str, Any]:
    """Load a key until killed."""
    ready()

    async def load() -> None:
        print("loading", flush=True)
        await front.sleep(LONG_S)

    front.run([front.ask("cold", load)])
    return {}


VERBS = {"crowd": crowd, "steady": steady, "race": race, "hold": hold}


def main() -> None:
    """Do what the command line says."""
    name, verb, what = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    try:
        peer = import_module(f"benchmarks.cache_peers.{name}")
    except ImportError as exc:
        print(json.dumps({"missing": str(exc)}))
        return
    if verb == "about":
        print(json.dumps({"title": peer.TITLE, "version": _version(peer.PACKAGE), "setup": peer.SETUP, "early": peer.EARLY,
                          "async": peer.IS_ASYNC, "layer": peer.LAYER}))  # fmt: skip
        return
    cache = peer.Cache(what.pop("ttl", LONG_S), early=verb == "steady")
    front = Tasks(cache) if peer.IS_ASYNC else Threads(cache)
    print(json.dumps(VERBS[verb](front, **what)), flush=True)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "this tree"


if __name__ == "__main__":
    main()
