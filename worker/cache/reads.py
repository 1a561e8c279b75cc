"""Reading an entry: the commands, what their answers mean, and whether what they show may be served."""

from __future__ import annotations

import struct
from collections.abc import Generator
from math import log
from random import random
from typing import Any, NamedTuple

from worker.cache.call import MISSING, Call
from worker.cache.codec import Undecodable
from worker.cache.effects import Ask, Away, Steps, ask
from worker.cache.entry import NEGATIVE, Entry, Tag, id_of, pack_tags, schema_of
from worker.store import keys

#: A refresh begins at the earliest so many loads before the end of the ttl. XFetch draws from a distribution without a bound so
#: that independent callers do not all refresh; here the lease lets only one, and an earlier start would only mean more loads.
EARLIEST = 1.5


class Seen(NamedTuple):
    """What one read saw: the entry if it is one, its id, and the versions of the tags the caller named."""

    entry: Entry | None
    id: bytes
    tags: tuple[Tag, ...]


def read_commands(call: Call) -> list[tuple[Any, ...]]:
    """Return the commands of a read.

    The life is asked before the entry: one that is replaced in between then seems older than it is, never fresher.
    """
    commands: list[tuple[Any, ...]] = [("PTTL", call.entry_key), ("GET", call.entry_key)]
    if call.tags:
        commands.append(call.tags_command)
    return commands


def look(call: Call, answers: list[Any]) -> Seen:
    """Understand the answers to a read; what is no entry of this format and schema is none."""
    pttl, raw = answers[0], answers[1]
    if call.tags:
        tags = tuple(map(Tag, call.tag_bytes, answers[2]))
        wanted = pack_tags(tags)
    else:
        tags, wanted = (), b""
    if raw is None:
        return Seen(None, b"", tags)
    return Seen(_entry(call, raw, pttl, wanted, len(tags)), id_of(raw), tags)


def _entry(call: Call, raw: bytes, pttl: int, wanted: bytes, names: int) -> Entry | None:
    if pttl < 0 or schema_of(raw) != call.codec.schema:  # one that never ends was not written by this code
        return None
    try:
        return Entry(raw, pttl, wanted, names)
    except (ValueError, struct.error):
        call.counters.failed("unreadable")
        return None


def serve(call: Call, seen: Seen) -> Any:
    """Return the value to give for what was seen, or `MISSING`; sets `call.due` when a refresh is due."""
    entry = seen.entry
    if entry is None or not entry.sound:
        return MISSING
    left = entry.left_ms
    if left <= -call.stale_ms or (left <= 0 and entry.flags & NEGATIVE):
        return MISSING
    value = decoded(call, entry)
    if value is MISSING:
        return MISSING
    if left <= 0:
        call.counters.stale.inc()
        call.due, call.due_id = True, entry.id
        return value
    call.counters.hits.inc()
    if left <= entry.load_ms * EARLIEST * call.terms.beta:
        call.due, call.due_id = _is_early(left, entry.load_ms * call.terms.beta), entry.id
    elif call.ticket >= 0:
        call.keep(entry, left - entry.load_ms * EARLIEST * call.terms.beta)
    return value


def _is_early(left_ms: float, load_ms: float) -> bool:
    """Draw whether this read refreshes early: XFetch (Vattani, Chierichetti, Lowenstein, VLDB 2015), within `EARLIEST`."""
    return left_ms <= -load_ms * log(1.0 - random())


def decoded(call: Call, entry: Entry) -> Any:
    """Return an entry's value, or `MISSING` when it is not of the caller's type, which is counted."""
    try:
        return call.codec.decode(entry.flags, entry.payload)
    except Undecodable:
        call.counters.failed("undecodable")
        return MISSING


def peek(call: Call, seen: Seen | None = None) -> Steps:
    """Read without loading: `MISSING` on a miss, and while Redis is away."""
    try:
        if seen is None:
            seen = yield from look_again(call)
        elif seen.entry is not None and seen.entry.tags:
            seen = yield from check_tags(call, seen)
        value = serve(call, seen)
    except Away:
        call.counters.bypasses.inc()
        return MISSING
    if value is MISSING:
        call.counters.misses.inc()
    return value


def look_again(call: Call) -> Generator[Ask, Any, Seen]:
    """Read, and check the tags of the entry that the caller did not name."""
    seen = look(call, (yield from ask(read_commands(call))))
    if seen.entry is not None and seen.entry.tags:
        seen = yield from check_tags(call, seen)
    return seen


def check_tags(call: Call, seen: Seen) -> Generator[Ask, Any, Seen]:
    """Check an entry under other tags than the caller named: sound when they all stand as they were."""
    entry = seen.entry
    assert entry is not None
    named = {tag.name for tag in seen.tags}
    if named <= {tag.name for tag in entry.tags}:
        (found,) = yield from ask([("MGET", *(keys.cache_tag(tag.name.decode()) for tag in entry.tags))])
        entry.sound = [tag.version for tag in entry.tags] == found
    return seen
