"""What lies in the cache under one key, for people: its age, its life, its tags and its value, whatever its type."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import msgspec

from worker.cache.entry import COMPRESSED, NEGATIVE, Entry
from worker.store import cache, keys


def describe(key: str) -> dict[str, Any] | None:
    """Return what is cached under a full key, as `Region.key` gives it; None for nothing. Raises `StoreUnavailable`.

    Keys: `key`, `found` (`value`, `absence` or `unreadable`), `value` (as plain JSON types), `bytes`, `age_s`, `fresh_s` (what is
    left of its ttl, negative past it), `left_s` (until it is gone), `load_s`, `tags` and whether they still `hold`.
    """
    pttl, raw = cache().ask([("PTTL", keys.cache_entry(key)), ("GET", keys.cache_entry(key))])
    if raw is None:
        return None
    told: dict[str, Any] = {"key": key, "found": "unreadable", "value": None, "bytes": len(raw), "left_s": pttl / 1000}
    try:
        entry = Entry(raw, pttl)
        told.update(age_s=entry.age_ms / 1000, fresh_s=entry.left_ms / 1000, load_s=entry.load_ms / 1000, **_tags(entry))
        told.update(found="absence" if entry.flags & NEGATIVE else "value", value=_plain(entry))
    except (ValueError, struct.error, zlib.error, msgspec.MsgspecError):
        pass
    return told


def _tags(entry: Entry) -> dict[str, Any]:
    names = [tag.name.decode() for tag in entry.tags]
    (versions,) = cache().ask([("MGET", *map(keys.cache_tag, names))]) if names else ([],)
    return {"tags": names, "hold": versions == [tag.version for tag in entry.tags]}


def _plain(entry: Entry) -> Any:
    if entry.flags & NEGATIVE:
        return None
    payload = zlib.decompress(entry.payload) if entry.flags & COMPRESSED else entry.payload
    return msgspec.to_builtins(msgspec.msgpack.decode(payload))
