"""Loading under a lease: run the loader, store what it returns or mark its failure, and tell those who wait."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

from worker.cache.call import MISSING, Call
from worker.cache.effects import Ask, Away, Load, Steps, ask
from worker.cache.entry import NEGATIVE, Entry, Tag, build, pack_tags
from worker.cache.leases import prolong
from worker.cache.reads import EARLIEST, Seen, decoded
from worker.cache.waits import AGAIN, FAILED, FILLED, waits
from worker.errors import CacheValueError
from worker.store import Lease, cache, keeper, script
from worker.telemetry import log as logger_of

logger = logger_of(__name__)
_fill, _fail, _release = script("cache_fill"), script("cache_fail"), script("lease_release")

#: Milliseconds beyond its back-off for which a failure is remembered, so that the next one counts as one more in a row.
REMEMBER_MS = 60_000
#: Characters of an error that those who wait are told.
_TOLD = 500


def load(call: Call, lease: str, tags: Sequence[Tag], failures: int, fallback: Entry | None) -> Steps:
    """Run the loader under a lease, store what it returns and hand it to those who wait. Sets `call.outcome`."""
    held = Lease(call.lease_key, lease, call.terms.lease_ms, cache())
    keeper().add(held)
    started = time.monotonic()
    try:
        call.counters.loads.inc()
        loaded = yield from loaded_value(call)
        call.load_s = time.monotonic() - started
        flags, payload = call.codec.encode(loaded, call.key)
        value = call.codec.round_trip(flags, payload, loaded, call.key)
    except Exception as exc:
        keeper().remove(held)
        return (yield from _failed(call, lease, failures + 1, exc, fallback))
    except GeneratorExit:
        keeper().drop(held)  # Whoever walked the steps is gone.
        raise
    except BaseException:
        keeper().remove(held)
        yield from give_back([(call, held)])
        raise
    try:
        yield from _store(call, held, tags, flags, payload)
    except BaseException:
        keeper().drop(held)
        raise
    keeper().remove(held)
    return value


def loaded_value(call: Call) -> Steps:
    """Run the loader; one for many keys is asked for this one."""
    if call.of_many is None:
        return (yield Load())
    found = mapping(call, (yield Load((list(call.of_many),))))
    return found.get(call.of_many[0])


def mapping(call: Call, found: Any) -> Mapping[Any, Any]:
    """Return what a loader of many returned. Raises `CacheValueError` when that is no mapping."""
    if not isinstance(found, Mapping):
        raise CacheValueError(f"{call.key}: the loader of many returned a {type(found).__name__}: return a dict, by key")
    return found


def give_back(many: Sequence[tuple[Call, Lease]]) -> Generator[Ask, Any, None]:
    """Give leases back under which nothing was loaded, and let those who wait ask again."""
    commands: list[tuple[Any, ...]] = []
    for call, held in many:
        commands += [_release.command([held.key], [held.token]), ("PUBLISH", call.entry_key, AGAIN)]
    try:
        yield from ask(commands)
    except Away:
        return  # they run out


def _store(call: Call, held: Lease, tags: Sequence[Tag], flags: int, payload: bytes) -> Steps:
    fill = prepare(call, held, tags, flags, payload)
    try:
        answers = yield from ask(fill.commands)
    except Away:
        stored(call, fill, None)
    else:
        stored(call, fill, answers[-1])


class Fill(NamedTuple):
    """A value about to be stored under a lease."""

    held: Lease
    raw: bytes
    tags: Sequence[Tag]
    fresh_ms: int
    life_ms: int
    #: To be run in one round trip; the last tells whether it was stored.
    commands: list[tuple[Any, ...]]


def prepare(call: Call, held: Lease, tags: Sequence[Tag], flags: int, payload: bytes) -> Fill:
    """Return how to store a value that was loaded."""
    fresh_ms, life_ms = call.terms.life_of(call.ttl, bool(flags & NEGATIVE))
    raw = build(
        held.token, flags=flags, schema=call.codec.schema, fresh_ms=fresh_ms, life_ms=life_ms,
        load_ms=round(1000 * call.load_s), tags=tags, payload=payload,
    )  # fmt: skip
    if flags & NEGATIVE and not call.terms.negative_ttl:
        life_ms = 1  # not kept: for those who wait alone
    command = _fill.command([call.entry_key, call.lease_key], [held.token, raw, life_ms])
    return Fill(held, raw, tags, fresh_ms, life_ms, [*prolong(tags, life_ms), command])


def stored(call: Call, fill: Fill, answer: int | None) -> None:
    """Note whether a value was stored; None when Redis was away."""
    if answer is None:
        # Those who wait in this process need no Redis for it; the others ask again when the lease has run out.
        keeper().drop(fill.held)
        call.outcome = "away"
        call.counters.failed("not stored")
        waits().heard(call.entry_key, FILLED + fill.held.token.encode() + fill.raw)
        return
    call.outcome = "filled" if answer else "refused"
    if not answer:
        call.counters.refused.inc()
    elif call.ticket >= 0:
        entry = Entry(fill.raw, fill.life_ms, pack_tags(fill.tags), len(fill.tags))
        call.keep(entry, min(fill.life_ms, fill.fresh_ms) - 1000 * call.load_s * EARLIEST * call.terms.beta)


def _failed(call: Call, lease: str, failures: int, exc: Exception, fallback: Entry | None) -> Steps:
    """Mark the failure, tell those who wait, and give the caller what is kept for that, or its own exception."""
    commands, life_ms, marker = failing(call, lease, failures, exc)
    try:
        yield from ask(commands)
    except Away:
        waits().heard(call.entry_key, FAILED + lease.encode() + str(life_ms).encode() + marker)
    value = MISSING if fallback is None else decoded(call, fallback)
    if value is MISSING:
        raise exc
    call.counters.stale.inc()
    logger.warning("a load failed; its last value is served", key=call.key, error=f"{type(exc).__name__}: {exc}"[:_TOLD])
    return value


def failing(call: Call, lease: str, failures: int, exc: Exception) -> tuple[list[tuple[Any, ...]], int, bytes]:
    """Count a failed load, and return the commands that tell the fleet, with the life of the marker and the marker."""
    call.counters.failed("load")
    call.outcome = "failed"
    back_off = call.terms.back_off_ms(failures)
    text = f"{type(exc).__name__}: {exc}"[:_TOLD]
    marker = f"!{failures}:{REMEMBER_MS}:{text}".encode(errors="replace")
    life_ms = back_off + REMEMBER_MS
    return [_fail.command([call.entry_key, call.lease_key], [lease, marker, life_ms])], life_ms, marker


def fallback_of(call: Call, seen: Seen) -> Entry | None:
    """Return the entry to serve when the load fails: past its time, but neither invalidated nor too old."""
    entry = seen.entry
    if entry is None or not entry.sound or entry.flags & NEGATIVE or entry.left_ms <= -1000 * call.terms.max_stale:
        return None
    return entry
