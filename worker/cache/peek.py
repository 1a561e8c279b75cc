"""What lies in the cache under one key, for people: its age, its life, its tags and its value, whatever its type."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import msgspec

from worker.cache.codec import Undecodable, inflated
from worker.cache.entry import COMPRESSED, NEGATIVE, Entry
from worker.store import cache, keys

#: The longest value that is shown, in bytes: what claims to be longer is not unpacked.
_MOST_BYTES = 64 * 2**20


def describe(key: str) -> dict[str, Any] | None:
    """Return what is cached under a full key, as `Region.key` gives it; None for nothing. Raises `StoreUnavailable`.

    Keys: `key`, `found` (`value`, `absence` or `unreadable`), `value` (plain JSON types and bytes), `bytes`, `age_s`, `fresh_s`
    (left of its ttl, negative past it), `left_s` (until it is gone), `load_s`, `tags` and whether they still `hold`.
    """
    pttl, raw = cache().ask([("PTTL", keys.cache_entry(key)), ("GET", keys.cache_entry(key))])
    if raw is None:
        return None
    told: dict[str, Any] = {"key": key, "found": "unreadable", "value": None, "bytes": len(raw), "left_s": pttl / 1000}
    try:
        entry = Entry(raw, pttl)
        told.update(age_s=entry.age_ms / 1000, fresh_s=entry.left_ms / 1000, load_s=entry.load_ms / 1000, **_tags(entry))
        told.update(found="absence" if entry.flags & NEGATIVE else "value", value=_plain(entry))
    except (ValueError, struct.error, zlib.error, msgspec.MsgspecError, Undecodable):
        pass
    return told


def _tags(entry: Entry) -> dict[str, Any]:
    names = [tag.name.decode() for tag in entry.tags]
    (versions,) = cache().ask([("MGET", *map(keys.cache_tag, names))]) if names else ([],)
    return {"tags": names, "hold": versions == [tag.version for tag in entry.tags]}


def _plain(entry: Entry) -> Any:
    if entry.flags & NEGATIVE:
        return None
    payload = inflated(entry.payload, _MOST_BYTES) if entry.flags & COMPRESSED else entry.payload
    return msgspec.to_builtins(msgspec.msgpack.decode(payload), builtin_types=(bytes,))
