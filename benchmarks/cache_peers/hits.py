"""Time hits in one process whose systems take turns: `python -m benchmarks.cache_peers.hits BLOCKS READS NAME…`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import redis
import redis.asyncio

#: A record of about a kilobyte.
VALUE = {
    "id": 4711, "name": "Ada Lovelace", "email": "ada@example.org", "active": True, "tags": ["first", "analyst", "countess"],
    "about": "The Analytical Engine has no pretensions whatever to originate anything. " * 12,
}  # fmt: skip
#: Seconds for which it is kept.
TTL_S = 600
#: How many more reads a block has where nothing leaves the process.
INNER = 10
#: What is compared with.
BARE, BARE_ASYNC = "redis-py GET", "redis-py GET, async"

_runner = asyncio.Runner()

#: Reads a value so many times.
Block = Callable[[int], None]


def _blocking(read: Callable[[], Any]) -> Block:
    def block(reads: int) -> None:
        for _ in range(reads):
            read()

    return block


def _awaiting(read: Callable[[], Any]) -> Block:
    async def rush(reads: int) -> None:
        for _ in range(reads):
            await read()

    return lambda reads: _runner.run(rush(reads))


def _bare() -> dict[str, Block]:
    url = os.environ["CACHE_URL"]
    plain, tasks = redis.Redis.from_url(url), redis.asyncio.Redis.from_url(url)
    plain.set("bare", json.dumps(VALUE), ex=TTL_S)
    return {BARE: _blocking(lambda: plain.get("bare")), BARE_ASYNC: _awaiting(lambda: tasks.get("bare"))}


def _peer(name: str, *, in_memory: bool) -> Block:
    """Return how a peer reads a value that it has."""
    peer = import_module(f"benchmarks.cache_peers.{name}")
    read = peer.Cache(TTL_S, in_memory=in_memory).get_or_load
    key = f"{name} {in_memory}"

    async def load() -> Any:
        return VALUE

    if peer.IS_ASYNC:
        return _awaiting(lambda: read(key, load))
    return _blocking(lambda: read(key, lambda: VALUE))


def _timed(systems: dict[str, Block], blocks: int, reads: int) -> dict[str, list[float]]:
    """Return the microseconds of a read in each block; which system begins changes from one to the next."""
    for block in systems.values():
        for _ in range(3):
            block(reads)
            time.sleep(0.2)  # what keeps values in memory connects to hear of changes first
    found: dict[str, list[float]] = {name: [] for name in systems}
    names = list(systems)
    for turn in range(blocks):
        shift = turn % len(names)
        for name in [*names[shift:], *names[:shift]]:
            began = time.perf_counter()
            systems[name](reads)
            found[name].append(1e6 * (time.perf_counter() - began) / reads)
    return found


def main() -> None:
    """Measure and print."""
    blocks, reads, names = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    layered = {name: _peer(name, in_memory=True) for name in names}
    remote = {name: _peer(name, in_memory=False) for name in names}
    print(json.dumps({
        "redis": _timed({**_bare(), **remote}, blocks, reads), "memory": _timed(layered, blocks, INNER * reads),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
