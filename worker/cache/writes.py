"""Writing a value through to the cache, and forgetting keys and tags."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from worker.cache.call import Call
from worker.cache.effects import Away, Steps, ask
from worker.cache.entry import NEGATIVE, TOKEN, build
from worker.cache.leases import prolong, tags_now, versions
from worker.cache.names import each_once, tag_names
from worker.errors import CacheValueError
from worker.settings import settings
from worker.store import keys, script

#: Least life of a version in milliseconds: a writer that stalls between its commit and its write may be late by more than a ttl.
_VERSION_MS = 3_600_000

_put, _invalidate = script("cache_put"), script("cache_invalidate")


def check_version(version: Any) -> None:
    """Raise `CacheValueError` for what cannot order writes."""
    if version is not None and (isinstance(version, bool) or not isinstance(version, int) or not 0 <= version < 2**53):
        raise CacheValueError(f"version={version!r}: give a whole number from 0 to 2^53 - 1")


def put(call: Call, value: Any, version: int | None) -> Steps:
    """Store a value that was written; tells whether it was, which a newer version or Redis being away prevents.

    What was told that it could not be stored is not stored later either, over what somebody has invalidated since.
    """
    flags, payload = call.codec.encode(value, call.key)
    call.codec.round_trip(flags, payload, value, call.key)
    fresh_ms, life_ms = call.terms.life_of(call.ttl, bool(flags & NEGATIVE))
    try:
        named, now = yield from tags_now(call)
        asked_at = time.monotonic()
        tags = yield from versions(named)
        raw = build(
            os.urandom(TOKEN // 2).hex(), flags=flags, schema=call.codec.schema, fresh_ms=fresh_ms, life_ms=life_ms,
            load_ms=0, tags=tags, payload=payload,
        )  # fmt: skip
        # Whoever sends it waits so long for the answer, so it is not stored after that.
        wait_ms = settings().cache_timeout_ms + 1000 * (time.monotonic() - asked_at)
        command = _put.command(
            [call.entry_key, call.lease_key, keys.cache_version(call.key)],
            [raw, life_ms, "" if version is None else version, keys.cache_drops(), call.key, max(life_ms, _VERSION_MS),
             *now, wait_ms],
        )  # fmt: skip
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


def tags_to_forget(tags: Any) -> list[str]:
    """Return the tags once each: as many as there are, for what bounds the tags of an entry is what its reads cost."""
    return [name for tag in each_once(tags, "tags") for name in tag_names((tag,))]
