"""A cached value as it lies in Redis: a small header, the tags it depends on, and the payload.

There is no clock in it. Its age is the life it was given less the life it has left, and both are the server's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

#: What an entry begins with; another layout gets another byte, and is a miss to this one.
FORMAT = 0xC1
#: The loader returned None: there is no payload.
NEGATIVE = 1
#: The payload is compressed.
COMPRESSED = 2
#: Characters of a token and of a tag's version, both hexadecimal.
TOKEN = 16
#: Characters of a lease: its token, a colon, and the digest of the tags it was taken under.
LEASE = TOKEN + 1 + 16

#: Format, flags, schema, number of tags; id (`cache_lease.lua` reads it at 4 to 19); fresh, life and load in milliseconds.
_HEADER = struct.Struct("<BBBB16sQQI")
_TAG = struct.Struct("<H")
#: The longest load the header can tell, in milliseconds: 49 days.
_MOST_LOAD_MS = 2**32 - 1


class Tag(NamedTuple):
    """A tag and the version of it that an entry was loaded under; None where there is none, so nothing can match it."""

    name: bytes
    version: bytes | None


class Entry:
    """An entry as one read saw it."""

    __slots__ = ("_at", "_raw", "flags", "id", "left_ms", "life_ms", "load_ms", "sound", "tags")

    def __init__(self, raw: bytes, pttl: int, wanted: bytes = b"", names: int = 0) -> None:
        """Read an entry. `wanted` is the tags it must be under, `names` how many; `sound` tells whether it is.

        Raises `ValueError` or `struct.error` when the bytes are not an entry of this format.
        """
        form, self.flags, _, count, self.id, fresh, self.life_ms, self.load_ms = _HEADER.unpack_from(raw)
        if form != FORMAT:
            raise ValueError(f"format {form}")
        #: Milliseconds until the value is past its ttl, negative after that.
        self.left_ms: int = fresh - self.life_ms + pttl
        self._raw = raw
        #: The tags it is under, where they are not the wanted ones.
        self.tags: tuple[Tag, ...] = ()
        if count == names and raw.startswith(wanted, _HEADER.size):
            self.sound, self._at = True, _HEADER.size + len(wanted)
        else:
            self.sound = False
            self.tags, self._at = _read_tags(raw, count)

    @property
    def payload(self) -> bytes:
        """The encoded value."""
        return self._raw[self._at :]

    @property
    def age_ms(self) -> int:
        """Milliseconds since it was filled, by the server's clock; -1 for one whose life is not known."""
        return self._fresh_ms - self.left_ms

    @property
    def _fresh_ms(self) -> int:
        fresh: int = _HEADER.unpack_from(self._raw)[5]
        return fresh


def schema_of(raw: bytes) -> int:
    """Return the schema version an entry was written with."""
    return raw[2] if len(raw) > 2 else -1


def id_of(raw: bytes | None) -> bytes:
    """Return what tells this entry from any other, as the Lua scripts read it; empty for none."""
    return raw[4:20] if raw else b""


def build(
    token: str, *, flags: int, schema: int, fresh_ms: int, life_ms: int, load_ms: int, tags: Sequence[Tag], payload: bytes
) -> bytes:
    """Return the bytes of an entry."""
    load = min(load_ms, _MOST_LOAD_MS)
    header = _HEADER.pack(FORMAT, flags, schema, len(tags), token[:TOKEN].encode(), fresh_ms, life_ms, load)
    return b"".join((header, pack_tags(tags), payload))


def pack_tags(tags: Sequence[Tag]) -> bytes:
    """Return the tags as they stand in an entry."""
    return b"".join(_TAG.pack(len(tag.name)) + tag.name + (tag.version or b"?" * TOKEN) for tag in tags)


def digest(tags: Sequence[Tag]) -> str:
    """Return 16 characters that differ wherever the tags or their versions do."""
    return blake2b(pack_tags(tags), digest_size=8).hexdigest()


def _read_tags(raw: bytes, count: int) -> tuple[tuple[Tag, ...], int]:
    tags, at = [], _HEADER.size
    for _ in range(count):
        (length,) = _TAG.unpack_from(raw, at)
        start = at + _TAG.size
        at = start + length + TOKEN
        if at > len(raw):
            raise ValueError("cut off")
        tags.append(Tag(raw[start : start + length], raw[start + length : at]))
    return tuple(tags), at
