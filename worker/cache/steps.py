"""The protocol of the cache on a miss, once for threads and tasks: a generator that yields what is to be done."""

from __future__ import annotations

import struct
import time
from collections.abc import Generator
from typing import Any

from worker.cache.bypass import bypass_load
from worker.cache.call import MISSING, Call
from worker.cache.effects import Await, Away, Steps
from worker.cache.entry import Entry, schema_of
from worker.cache.leases import FAILED, GRANTED, HELD, OTHER_TAGS, new_lease, try_lease, versions
from worker.cache.loads import REMEMBER_MS, fallback_of, load
from worker.cache.reads import Seen, check_tags, decoded, look_again, serve
from worker.cache.waits import News, Waiter, waits
from worker.errors import LoadFailed


def miss(call: Call, seen: Seen) -> Steps:
    """Load what a read did not find, or wait for whoever loads it; without Redis, load a few at a time.

    Raises what the loader raises, `LoadFailed` where another caller's load failed, `CacheValueError` for a value that cannot
    be cached.
    """
    try:
        if seen.entry is not None and seen.entry.tags:
            seen = yield from check_tags(call, seen)
            value = serve(call, seen)
            if value is not MISSING:
                return value
        return (yield from _load_or_wait(call, seen))
    except Away:
        return (yield from bypass_load(call))


def _load_or_wait(call: Call, seen: Seen) -> Steps:
    call.counters.misses.inc()
    until = time.monotonic() + call.terms.max_wait_s
    waiter: Waiter | None = None
    take_over = False
    try:
        while time.monotonic() < until:
            tags = yield from versions(seen.tags)
            lease = new_lease(tags)
            code, *rest = yield from try_lease(call, lease, seen.id, take_over)
            if code == GRANTED:
                return (yield from load(call, lease, tags, rest[0], fallback_of(call, seen)))
            if code == FAILED:
                return _spare(call, fallback_of(call, seen), rest[0], rest[1])
            if code == HELD and (waiter is None or waiter.lease != rest[0]):
                waiter = yield from _join(call, waiter, rest[0])
                continue  # to ask once more: what happened before the waiter was heard would be missed
            if code == HELD and waiter is not None:
                yield Await(waiter.news, min(rest[1] / 1000 + 0.001, until - time.monotonic()))
                value = _heard(call, seen, waiter.news.value)
                if value is not MISSING:
                    return value
                waits().leave(waiter)
                waiter = None
            take_over = code == OTHER_TAGS
            seen = yield from look_again(call)
            value = serve(call, seen)
            if value is not MISSING:
                return value
    finally:
        if waiter is not None:
            waits().leave(waiter)
    return (yield from bypass_load(call))


def _join(call: Call, waiter: Waiter | None, lease: bytes) -> Generator[Await, Any, Waiter]:
    if waiter is None:
        call.counters.waits.inc()
    else:
        waits().leave(waiter)
    waiter = waits().join(call.entry_key, lease)
    try:
        yield Await(waiter.confirmed, call.terms.lease_ms / 1000)
    except BaseException:
        waits().leave(waiter)
        raise
    return waiter


def _heard(call: Call, seen: Seen, news: News | None) -> Any:
    """Return the value another caller loaded, raise its failure, or `MISSING`: ask again."""
    if news is None:
        return MISSING
    if news.failure:
        left, _, marker = news.failure.partition(b"!")
        return _spare(call, fallback_of(call, seen), int(left) - REMEMBER_MS, b"!" + marker)
    if not news.entry or schema_of(news.entry) != call.codec.schema:
        return MISSING
    try:
        # It was loaded under the very tags this caller asked with: the lease it waited for names them.
        entry = Entry(news.entry, 0)
    except (ValueError, struct.error):
        call.counters.failed("unreadable")
        return MISSING
    return decoded(call, entry)


def _spare(call: Call, fallback: Entry | None, left_ms: int, marker: bytes) -> Any:
    """Answer while a failed load backs off: with what is kept for that, else by saying so."""
    if fallback is not None:
        value = decoded(call, fallback)
        if value is not MISSING:
            call.counters.stale.inc()
            return value
    error = marker.split(b":", 2)[2].decode(errors="replace")
    retry_after = max(0.0, left_ms / 1000)
    text = f"{call.key}: the load failed ({error}); the next in {retry_after:.2f} s"
    raise LoadFailed(text, key=call.key, retry_after=retry_after)
