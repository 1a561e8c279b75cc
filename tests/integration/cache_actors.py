"""Programs that use the cache beside a test: `python -m tests.integration.cache_actors <name> <arguments>`.

What they load is a number in the coordination Redis, which stands for the database: `truth:<key>`.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable

from redis import Redis

from worker.cache import Region, invalidate
from worker.settings import settings
from worker.telemetry import CACHE_BYPASSES

#: Values that no test wants to see run out.
LONG = 600


def database() -> Redis:
    return Redis.from_url(settings().redis_url, decode_responses=True)


def crowd(key: str, callers: int, start: float) -> None:
    """Ask for one key with many threads at one moment; print the loads' values, the slowest caller and the errors."""
    region = Region("crowd", ttl=LONG)
    db = database()

    def load() -> int:
        time.sleep(0.3)
        return int(db.incr(f"truth:{key}"))

    found: list[object] = []
    took: list[float] = []

    def ask() -> None:
        time.sleep(max(0.0, start - time.time()))
        begun = time.monotonic()
        try:
            found.append(region.get_or_load(key, load))
        except Exception as exc:
            found.append(repr(exc))
        took.append(time.monotonic() - begun)

    together(ask, callers)
    bypasses = int(CACHE_BYPASSES.labels("crowd")._value.get())
    print("asked", len(found), sorted(map(str, set(found))), "bypasses", bypasses, f"slowest {max(took):.3f}", flush=True)


def hold(key: str) -> None:
    """Take the lease of a key and load until killed."""

    def load() -> None:
        print("loading", flush=True)
        time.sleep(LONG)

    Region("held", ttl=LONG).get_or_load(key, load)


def forget(key: str, tag: str) -> None:
    """Invalidate a key and a tag."""
    print("invalidated", invalidate([key] if key else [], [tag] if tag else []), flush=True)


def race(seed: int, number: int, keys: int) -> None:
    """Read and write at random, and print how many reads were older than an invalidation that had returned before them.

    A write commits, then invalidates, by key, by tag or by writing through; only then it says that nothing older may be read.
    """
    Race(seed, keys).run(number)


class Race:
    def __init__(self, seed: int, keys: int) -> None:
        self.keys, self.seed = keys, seed
        self.plain = Region("race", ttl=LONG)
        self.tagged = Region("tagged", ttl=LONG)
        self.short = Region("short", ttl=0.02, stale_while_revalidate=0)
        self.written = Region("written", ttl=0.05)
        self.regions = (self.plain, self.tagged, self.short, self.written)
        self.stale: list[str] = []
        self.done = 0

    def run(self, number: int) -> None:
        threads = 4
        together_each([lambda n=n: self.work(n, number // threads) for n in range(threads)])
        print("raced", self.done, "stale", len(self.stale), self.stale[:5], flush=True)

    def work(self, thread: int, number: int) -> None:
        draw = random.Random(self.seed * 100 + thread)
        db = database()
        for _ in range(number):
            region, key = draw.choice(self.regions), f"k{draw.randrange(self.keys)}"
            if draw.random() < 0.3:
                self.write(db, draw, region, key)
            else:
                self.read(db, draw, region, key)
            self.done += 1

    def write(self, db: Redis, draw: random.Random, region: Region, key: str) -> None:
        name = region.key(key)
        version = int(db.incr(f"truth:{name}"))  # the commit
        pause(draw)
        if region is self.tagged:
            sure = region.invalidate_tags(f"tag:{key}")
        elif region is self.written:
            sure = region.write_through(key, version, version=version) or version < int(db.get(f"truth:{name}") or 0)
        else:
            sure = region.invalidate(key)
        if not sure:
            raise SystemExit("an invalidation was lost")
        db.execute_command("ZADD", "floors", "GT", version, name)

    def read(self, db: Redis, draw: random.Random, region: Region, key: str) -> None:
        name = region.key(key)
        floor = int(db.zscore("floors", name) or 0)

        def load() -> int:
            found = int(db.get(f"truth:{name}") or 0)
            pause(draw)
            return found

        tags = [f"tag:{key}"] if region is self.tagged else []
        if draw.random() < 0.1:
            (found,) = region.get_many_or_load([key], lambda keys: {keys[0]: load()}, tags=tags).values()
        else:
            found = region.get_or_load(key, load, tags=tags)
        if found is None or found < floor:
            self.stale.append(f"{name}: {found} after {floor}")


def pause(draw: random.Random) -> None:
    if draw.random() < 0.7:
        time.sleep(draw.random() * 0.004)


def together(work: Callable[[], None], number: int) -> None:
    together_each([work] * number)


def together_each(work: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    if name == "crowd":
        crowd(rest[0], int(rest[1]), float(rest[2]))
    elif name == "hold":
        hold(rest[0])
    elif name == "forget":
        forget(*rest)
    elif name == "race":
        race(*map(int, rest))
