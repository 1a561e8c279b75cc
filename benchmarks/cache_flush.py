"""A flush of the cache Redis under readers, a writer and the warmer: `python -m benchmarks.cache_flush ROLE WHAT`.

What is read is a row with a version. A floor for each row, in a file that all processes map, is the version whose invalidation
has returned: a reader that asks after that and gets an older one got a wrong answer.
"""

from __future__ import annotations

import json
import mmap
import random
import struct
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from redis import Redis

from benchmarks.fleet import members, ready
from benchmarks.support import Servers, create_database
from worker.cache import cached, outbox
from worker.cache.warm import warm
from worker.db import statement, upgrade
from worker.settings import settings
from worker.telemetry import CACHE_HITS, CACHE_MISSES, OUTAGES

#: Processes that read, threads of each, and the reads a second of all together.
READERS, THREADS, RATE = 2, 4, 2000
#: Rows written a second.
WRITES = 20
#: Seconds of readings before the flush, and between two readings of the counters.
CALM_S, TICK_S = 3.0, 0.25
#: The part of reads that must be hits, over two readings in a row, for the cache to count as filled again.
FILLED = 0.95
#: Keys that are filled in one go before the start.
BATCH = 200

_TABLE = """
CREATE TABLE items (id int PRIMARY KEY, version int NOT NULL, body text NOT NULL);
INSERT INTO items SELECT n, 1, repeat('x', 200) FROM generate_series(0, %s) AS n
"""
_READ = "SELECT id, version, body FROM items WHERE id = ANY(%s)"
_WRITE = "UPDATE items SET version = version + 1 WHERE id = %s RETURNING version"


class Item(msgspec.Struct):
    """A row."""

    version: int
    body: str


def _load(numbers: list[str]) -> dict[str, Item]:
    with statement() as conn:
        return {str(row[0]): Item(row[1], row[2]) for row in conn.execute(_READ, ([int(one) for one in numbers],))}


@cached(key="{number}", ttl=600, name="items")
def item(number: int) -> Item:
    """Return a row."""
    return _load([str(number)])[str(number)]


class Floors:
    """The version of each row below which no answer is right."""

    def __init__(self, path: str, rows: int) -> None:
        with Path(path).open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4 * rows)

    def __getitem__(self, number: int) -> int:
        found: int = struct.unpack_from("=I", self._map, 4 * number)[0]
        return found

    def __setitem__(self, number: int, version: int) -> None:
        struct.pack_into("=I", self._map, 4 * number, version)


# ---- the processes


def read(rows: int, seconds: float, floors: str, seed: int) -> dict[str, Any]:
    """Read rows at random at a steady rate, all alike, and count by the time what the cache had."""
    floor, start = Floors(floors, rows), ready()
    counts = {"reads": 0, "wrong": 0, "errors": 0}
    lock = threading.Lock()

    def one(number: int) -> None:
        rng, due, every_s = random.Random(f"{seed} {number}"), start, READERS * THREADS / RATE
        while due < start + seconds:
            time.sleep(max(0.0, due - time.time()))
            due = max(due + every_s, time.time() - 1)
            chosen = rng.randrange(rows)
            least = floor[chosen]
            try:
                what = "wrong" if item(chosen).version < least else ""
            except Exception:
                what = "errors"
            with lock:
                counts["reads"] += 1
                if what:
                    counts[what] += 1

    threads = [threading.Thread(target=one, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    ticks = [(time.time(), CACHE_HITS.labels("items")._value.get(), CACHE_MISSES.labels("items")._value.get())]
    while any(thread.is_alive() for thread in threads):
        time.sleep(TICK_S)
        ticks.append((time.time(), CACHE_HITS.labels("items")._value.get(), CACHE_MISSES.labels("items")._value.get()))
    return {**counts, "ticks": ticks}


def write(rows: int, seconds: float, floors: str, seed: int) -> dict[str, Any]:
    """Change rows at random, and raise their floors once the invalidation has returned."""
    floor, rng = Floors(floors, rows), random.Random(seed)
    left = OUTAGES.labels("cache invalidation", "left to the relay")._value
    writes, due = 0, ready()
    until = due + seconds
    with psycopg.connect(settings().database_url, autocommit=True) as conn:
        while (due := due + 1 / WRITES) < until:
            time.sleep(max(0.0, due - time.time()))
            chosen, owed = rng.randrange(rows), left.get()
            with outbox.transaction(conn) as changes:
                row = conn.execute(_WRITE, (chosen,)).fetchone()
                changes.add(keys=[item.key(chosen)])
            if row is not None and left.get() == owed:
                floor[chosen] = row[0]
            writes += 1
    return {"writes": writes, "left": left.get()}


def keep_warm(rows: int, seconds: float, every_s: float) -> dict[str, Any]:
    """Fill the cache, then do what beat has a worker do, as often as it does."""
    for first in range(0, rows, BATCH):
        item.region.get_many_or_load([str(number) for number in range(first, min(rows, first + BATCH))], _load)
    start = ready()
    advanced, due = 0, start
    while due < start + seconds:
        time.sleep(max(0.0, due - time.time()))
        advanced += sum(report.advanced for report in warm())
        due += every_s
    return {"advanced": advanced}


# ---- from outside


def measure(here: Servers, rows: int, seconds: float, warm_every_s: float) -> dict[str, float]:
    """Return what a flush did: wrong answers, errors, the hit rate before, and the seconds until it was high again."""
    url = create_database(here.stack.postgres.url, "flushing")
    upgrade(url)
    with psycopg.connect(url, autocommit=True) as conn:
        for command in (_TABLE % (rows - 1)).split(";"):
            conn.execute(command)
    here.flush()
    floors = here.folder / "floors"
    floors.write_bytes(bytes(4 * rows))
    shared = {"rows": rows, "seconds": CALM_S + seconds}
    watched = {**shared, "floors": str(floors)}
    roles = [("keep_warm", {**shared, "every_s": warm_every_s}), ("write", {**watched, "seed": 0})]
    roles += [("read", {**watched, "seed": 1 + number}) for number in range(READERS)]
    commands = [["-m", "benchmarks.cache_flush", role, json.dumps(what)] for role, what in roles]
    with members(commands, here.env(url)) as started, Redis.from_url(here.stack.cache.url) as client:
        at = time.time() + 0.2
        for member in started:
            member.begin(at)
        time.sleep(at + CALM_S - time.time())
        flushed = time.time()
        client.flushall()
        warmer, writer, *readers = [member.told() for member in started]
    rates = list(_rates([reader["ticks"] for reader in readers]))
    before = [rate for moment, rate in rates if moment < flushed - TICK_S]
    return {
        **{what: sum(reader[what] for reader in readers) for what in ("reads", "wrong", "errors")}, **writer, **warmer,
        "before": before[-1], "lowest": min(rate for moment, rate in rates if moment > flushed),
        "filled_s": next((moment - flushed for moment, rate in _twice(rates, flushed) if rate >= FILLED), seconds),
    }  # fmt: skip


def _rates(readers: list[list[tuple[float, float, float]]]) -> Iterator[tuple[float, float]]:
    """Yield the hit rate of all readers together, with the end of the time it is of."""
    for ticks in zip(*(pairwise(ticks) for ticks in readers), strict=False):
        hits = sum(after[1] - before[1] for before, after in ticks)
        misses = sum(after[2] - before[2] for before, after in ticks)
        if hits + misses:
            yield ticks[0][1][0], hits / (hits + misses)


def _twice(rates: list[tuple[float, float]], since: float) -> Iterator[tuple[float, float]]:
    """Yield the lower of each two rates in a row, with the end of the first of them."""
    later = [one for one in rates if one[0] > since + TICK_S]
    for (moment, rate), (_, following) in pairwise(later):
        yield moment, min(rate, following)


def main() -> None:
    """Be one of the processes."""
    roles = {"read": read, "write": write, "keep_warm": keep_warm}
    print(json.dumps(roles[sys.argv[1]](**json.loads(sys.argv[2]))), flush=True)


if __name__ == "__main__":
    main()
