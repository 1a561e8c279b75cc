"""Writing a value through to the cache, and forgetting keys and tags."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from worker.cache.call import Call
from worker.cache.effects import Away, Steps, ask
from worker.cache.entry import NEGATIVE, TOKEN, build
from worker.cache.leases import prolong, tags_now, versions
from worker.errors import CacheValueError
from worker.store import keys, script

#: Least life of a version in milliseconds: a writer that stalls between its commit and its write may be late by more than a ttl.
_VERSION_MS = 3_600_000

_put, _invalidate = script("cache_put"), script("cache_invalidate")


def check_version(version: Any) -> None:
    """Raise `CacheValueError` for what cannot order writes."""
    if version is not None and (isinstance(version, bool) or not isinstance(version, int) or not 0 <= version < 2**53):
        raise CacheValueError(f"version={version!r}: give a whole number from 0 to 2^53 - 1")


def put(call: Call, value: Any, version: int | None) -> Steps:
    """Store a value that was written; tells whether it was, which a newer version or Redis being away prevents."""
    flags, payload = call.codec.encode(value, call.key)
    call.codec.round_trip(flags, payload, call.key)
    fresh_ms, life_ms = call.terms.life_of(call.ttl, bool(flags & NEGATIVE))
    try:
        tags = yield from versions((yield from tags_now(call)))
        raw = build(
            os.urandom(TOKEN // 2).hex(), flags=flags, schema=call.codec.schema, fresh_ms=fresh_ms, life_ms=life_ms,
            load_ms=0, tags=tags, payload=payload,
        )  # fmt: skip
        command = _put.command(
            [call.entry_key, call.lease_key, keys.cache_version(call.key)],
            [raw, life_ms, "" if version is None else version, keys.cache_drops(), call.key, max(life_ms, _VERSION_MS)],
        )
        answers = yield from ask([*prolong(tags, life_ms), command])
    except Away:
        call.counters.failed("not written")
        return False
    if answers[-1] != 1:
        call.counters.refused.inc()
    return answers[-1] == 1


def invalidate_commands(names: Sequence[str], tags: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the commands that forget keys and tags.

    A tag is deleted: whoever needs it next gives it another random version, and no entry has that one.
    """
    drops = keys.cache_drops()
    commands: list[tuple[Any, ...]] = [
        _invalidate.command([keys.cache_entry(name), keys.cache_lease(name)], [drops, name]) for name in names
    ]
    for tag in tags:
        commands += [("DEL", keys.cache_tag(tag)), ("PUBLISH", drops, "t" + tag)]
    return commands
