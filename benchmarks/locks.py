"""Measure locks beside redis-py's, python-redis-lock and pottery: one that is free, and one that many wait for.

The libraries take turns, so that a slow moment of the machine meets each of them alike. All talk to one Redis that appends to a
file, as Holdfast's coordination server does.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from redis import Redis

from benchmarks.support import Report, console, options, ratio, servers

#: Acquire and release, over and over by one thread: pairs in a block, and blocks of each library.
PAIRS, BLOCKS = 500, 20
#: Threads that wait for one lock, and for how long each holds it.
WAITERS, HOLD_S = 200, 0.005
TTL_S = 30
#: Crowds, of which the median time and the worst order are told.
CROWDS = 3
#: Seconds between the arrivals of two waiters.
APART_S = 0.01

#: What connecting and looking costs, and no lock.
OWN = ("INFO", "AUTH", "HELLO", "CLIENT", "MONITOR")

#: A lock of a library: what takes it and gives it up again.
Made = Callable[[], AbstractContextManager[Any]]
#: A library: a lock for one who finds it free, and one for a waiter.
Library = tuple[Made, Made]


def libraries(url: str) -> dict[str, Library]:
    """Return the locks of each library that is installed, on this server."""
    found = {"holdfast": _holdfast(), "redis-py": _redis_py(url)}
    for name, make in (("python-redis-lock", _python_redis_lock), ("pottery", _pottery)):
        try:
            found[name] = make(url)
        except ImportError:
            console.print(f"{name} is not installed: pip install 'holdfast[bench]'")
    return found


def _client(url: str) -> Redis:
    """Return a client with a connection for each waiter: those who block on the server need one."""
    return Redis.from_url(url, max_connections=2 * WAITERS)


def _holdfast() -> Library:
    from worker.locks import Lock

    lock = Lock("bench", TTL_S)
    return lock.acquire, lambda: Lock("bench crowd", TTL_S).acquire(600)


def _redis_py(url: str) -> Library:
    client = _client(url)
    lock = client.lock("bench-redis-py", timeout=TTL_S)
    return lambda: lock, lambda: client.lock("bench-redis-py-crowd", timeout=TTL_S)


def _python_redis_lock(url: str) -> Library:
    import redis_lock

    client = _client(url)
    return (
        lambda: redis_lock.Lock(client, "bench", expire=TTL_S),
        lambda: redis_lock.Lock(client, "bench crowd", expire=TTL_S),
    )


def _pottery(url: str) -> Library:
    from pottery import Redlock

    client = _client(url)
    lock = Redlock(key="bench", masters={client}, auto_release_time=TTL_S)
    return lambda: lock, lambda: Redlock(key="bench-crowd", masters={client}, auto_release_time=TTL_S)


# ---- one that is free


def uncontended(made: dict[str, Library], pairs: int, blocks: int) -> dict[str, list[float]]:
    """Return the microseconds of a pair in each block, by library."""
    found: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(blocks):
        for name, (lock, _) in made.items():
            started = time.perf_counter()
            for _ in range(pairs):
                with lock():
                    pass
            found[name].append((time.perf_counter() - started) / pairs * 1e6)
    return found


# ---- one that many wait for


def crowd(lock: Made, waiters: int) -> tuple[float, float]:
    """Let so many threads wait for one lock; return how many times the ideal they took, and the part that was overtaken."""
    served: list[int] = []

    def wait(n: int) -> None:
        with lock():
            served.append(n)
            time.sleep(HOLD_S)

    threads = [threading.Thread(target=wait, args=(n,), daemon=True) for n in range(waiters)]
    with lock():
        for thread in threads:
            thread.start()
            time.sleep(APART_S)  # so that they come in this order
        time.sleep(0.5)
        started = time.perf_counter()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - started
    overtaken = sum(any(other > n for other in served[:place]) for place, n in enumerate(served))
    return took / (waiters * HOLD_S), overtaken / waiters


def commands(lock: Made, waiters: int, url: str) -> tuple[float, float]:
    """Let them wait once more, watched; return the commands that were sent for each, and those with what scripts ran inside."""
    before, sent, done = Redis.from_url(url), 0, "holdfast benchmark: done"
    with before.monitor() as watch:
        stats = _calls(before)
        crowd(lock, waiters)
        everything = _calls(before) - stats
        before.echo(done)
        for line in watch.listen():
            if done in line["command"]:
                break
            sent += line["client_type"] != "lua" and not line["command"].startswith(OWN)
    return sent / waiters, everything / waiters


def _calls(server: Redis) -> int:
    told: dict[str, Any] = server.info("commandstats")  # type: ignore[assignment]
    own = tuple(f"cmdstat_{name.lower()}" for name in OWN)
    return sum(stats["calls"] for name, stats in told.items() if not name.startswith(own))


# ---- the report


def main() -> None:
    """Measure and print."""
    args = options(__doc__).parse_args()
    pairs, blocks, waiters = (100, 6, 60) if args.quick else (PAIRS, BLOCKS, WAITERS)
    report = Report(as_json=args.json)
    with servers() as here:
        env = here.env()
        os.environ.update(env)
        made = libraries(env["REDIS_URL"])
        uncontended(made, pairs, 1)  # first connections, first scripts
        _alone(report, uncontended(made, pairs, blocks))
        _crowds(report, made, waiters, env["REDIS_URL"])
    report.print()


def _alone(report: Report, found: dict[str, list[float]]) -> None:
    rows = []
    for name, us in found.items():
        beside = ratio(us, found["holdfast"])
        rows.append([name, f"{statistics.median(us):.0f}", f"{min(us):.0f}", f"{beside:.2f}"])
        report.figure(f"{name}: microseconds to acquire and release", statistics.median(us))
        if name != "holdfast":
            report.target(f"{name}: times as long as Holdfast to acquire and release", beside, least=1.0)
    report.table("Acquire and release, uncontended", ["library", "us, median", "us, best", "beside Holdfast"], rows)


def _crowds(report: Report, made: dict[str, Library], waiters: int, url: str) -> None:
    rows = []
    for name, (_, lock) in made.items():
        console.print(f"{waiters} waiters: {name}")
        runs = [crowd(lock, waiters) for _ in range(CROWDS)]
        times, overtaken = statistics.median(run[0] for run in runs), max(run[1] for run in runs)
        sent, everything = commands(lock, waiters, url)
        rows.append([name, f"{times:.2f}", f"{overtaken:.0%}", f"{sent:.1f}", f"{everything:.1f}"])
        found = {"times the ideal": times, "overtaken": overtaken, "commands sent": sent, "commands in all": everything}
        for what, value in found.items():
            report.figure(f"{name}: {what}", value)
        if name == "holdfast":
            report.target("times the ideal", times, most=1.3)
            report.target("part of the waiters that was overtaken", overtaken, most=0.0)
            report.target("commands sent for each", sent, most=6.0)
    columns = ["library", "times the ideal", "overtaken", "commands sent for each", "with those inside scripts"]
    report.table(f"{waiters} waiters, each holding {HOLD_S * 1000:g} ms", columns, rows)


if __name__ == "__main__":
    main()
