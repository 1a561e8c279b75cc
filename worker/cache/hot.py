"""The ranking of reads: which arguments of which named loaders are asked for most, in the whole fleet.

Each process counts one read in `SAMPLE`, and a thread adds its counts to one sorted set in Redis every `FLUSH_S` seconds. The set
is bounded, decays when the warmer says so, and goes when nobody reads any more.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass
from random import random
from typing import Any

from worker.errors import HoldfastError
from worker.store import cache, keys, script
from worker.telemetry import OUTAGES

#: One read in so many is counted, and counts for as many: the hot path pays for one random number.
SAMPLE = 8
#: Seconds between two additions of a process's counts.
FLUSH_S = 2.0
#: Members of the ranking: several times what one run of the warmer can refresh.
MEMBERS = 1000
#: Members counted in a process between two additions; more are not counted, for they are not hot.
_COUNTED = 4096
#: Longest member, in characters: longer arguments are not ranked.
_LONGEST = 512
#: Milliseconds after the last addition for which the ranking is kept.
_LIFE_MS = 86_400_000
#: Reads below which a member is dropped when the ranking decays.
_LEAST = 0.5

_add, _decay = script("cache_hot"), script("cache_decay")


@dataclass(frozen=True, slots=True)
class Hot:
    """A loader, its arguments, and about how many reads it had lately."""

    name: str
    args: list[Any]
    reads: float


class Ranking:
    """The counts of one process. Thread-safe but for a read lost now and then, which a sample can bear."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, tuple[Any, ...]], int] = {}
        self._thread: threading.Thread | None = None

    def count(self, name: str, args: tuple[Any, ...]) -> None:
        """Count a read that was drawn for the sample."""
        counts, member = self._counts, (name, args)
        try:
            known = counts.get(member, 0)
        except TypeError:
            return  # arguments that are no key
        if known or len(counts) < _COUNTED:
            counts[member] = known + SAMPLE
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="holdfast-hot", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(FLUSH_S)
            self.flush()

    def flush(self) -> None:
        """Add the counts to the fleet's; they are dropped, and that is counted, when Redis is away."""
        counts, self._counts = self._counts, {}
        rows = [[member, reads] for key, reads in list(counts.items()) if (member := _member(*key)) is not None]
        if not rows:
            return
        try:
            cache().ask([_add.command([keys.cache_hot()], [json.dumps(rows), MEMBERS, _LIFE_MS])])
        except HoldfastError:
            OUTAGES.labels("hot keys", "not ranked").inc()


def _member(name: str, args: tuple[Any, ...]) -> str | None:
    try:
        member = json.dumps([name, list(args)], separators=(",", ":"), default=str)
    except ValueError:
        return None
    return member if len(member) <= _LONGEST else None


_ranking = Ranking()


def note(name: str, args: tuple[Any, ...]) -> None:
    """Count a read of a named loader, or rather every eighth: far below a microsecond on average."""
    if random() * SAMPLE < 1.0:
        _ranking.count(name, args)


def flush() -> None:
    """Add this process's counts to the fleet's now."""
    _ranking.flush()


def top(n: int) -> list[Hot]:
    """Return the `n` most read, the first first, without members that are none of ours. Raises `StoreUnavailable`."""
    (rows,) = cache().ask([("ZREVRANGE", keys.cache_hot(), 0, n - 1, "WITHSCORES")]) if n > 0 else ([],)
    pairs = rows if rows and isinstance(rows[0], list) else list(zip(rows[::2], rows[1::2], strict=True))
    return [Hot(*read, float(reads)) for member, reads in pairs if (read := _read(member)) is not None]


def _read(member: bytes) -> tuple[str, list[Any]] | None:
    """Return a member as the name of its loader and the arguments, or None for what `_member` has not written."""
    try:
        name, args = json.loads(member)
    except (ValueError, TypeError, RecursionError):
        return None
    return (name, args) if isinstance(name, str) and isinstance(args, list) else None


def decay(factor: float = 0.5) -> int:
    """Let past reads count less from now on, and return how many members are left. Raises `StoreUnavailable`."""
    if not 0 <= factor <= 1:
        raise ValueError(f"factor={factor!r}: give a number from 0 to 1")
    (left,) = cache().ask([_decay.command([keys.cache_hot()], [factor, _LEAST, _LIFE_MS])])
    return int(left)


def _after_fork() -> None:
    global _ranking
    _ranking = Ranking()


os.register_at_fork(after_in_child=_after_fork)
