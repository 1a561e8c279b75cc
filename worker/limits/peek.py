"""Limits as people look at them: the keys that are counted for by now, and who holds the slots of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worker.limits.limit import Limit
from worker.store import coordination, keys

#: Keys the server looks at in one step, and steps at most: a few milliseconds of its time, some tenths of a second of ours.
_STEP, _STEPS = 1000, 200


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds slots of a limit: a job's id, mostly; how many, and the seconds its lease still lasts."""

    name: str
    cost: int
    lease_s: float


def counted_keys(limit: Limit, *, most: int = 200) -> tuple[list[str], bool]:
    """Return keys that a limit counts for now, as Redis knows them, and whether that is all. Raises `StoreUnavailable`.

    A long key is told by its beginning and a digest, and the limit takes that for the key itself.
    """
    pattern = keys.limit(f"{limit.name}:*", limit.rate.way)
    before, _, after = pattern.partition("*")
    found: set[str] = set()
    cursor = b"0"
    for _ in range(_STEPS):
        ((cursor, names),) = coordination().ask([("SCAN", cursor, "MATCH", pattern, "COUNT", _STEP)])
        found |= {name.decode(errors="replace")[len(before) : -len(after)] for name in names}
        if cursor == b"0" or len(found) > most:
            break
    return sorted(found)[:most], cursor == b"0" and len(found) <= most


def holders(limit: Limit, key: str) -> list[Holder]:
    """Return who holds slots for a key, the one whose lease ends first first. Raises `StoreUnavailable`."""
    rows, now = coordination().ask([("ZRANGE", limit.counter(key), 0, -1, "WITHSCORES"), ("TIME",)])
    # Old servers send scores as text, those of RESP3 as numbers beside their member.
    flat: list[Any] = [value for pair in rows for value in pair] if rows and isinstance(rows[0], list) else rows
    now_us = int(now[0]) * 1_000_000 + int(now[1])
    found = []
    for member, ends_us in zip(flat[::2], flat[1::2], strict=True):
        cost, _, name = member.decode(errors="replace").partition(":")
        if float(ends_us) > now_us:
            found.append(Holder(name, int(cost) if cost.isdigit() else 1, (float(ends_us) - now_us) / 1_000_000))
    return found
