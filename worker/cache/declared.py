"""What the blocking and the asynchronous region have in common: how they are declared, and how they read a question."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from worker.cache.call import MISSING, Call
from worker.cache.codec import Codec, Undecodable
from worker.cache.local import LocalCache
from worker.cache.names import full_key, seconds, tag_names
from worker.cache.terms import Counters, checked
from worker.errors import CacheConfigError, CacheKeyError

#: An argument that was not given; None is a value people pass by mistake.
UNSET: Any = object()
#: Seconds of a lease: with the moment it takes to notice its end, the next load begins within three of a holder's death.
LEASE_S = 2.9
#: Types given to reads whose codecs a region keeps: more are made by programs that would fill their memory.
_MOST_CODECS = 1024


class Declared:
    """A named set of keys with the same terms."""

    def __init__(
        self,
        name: str,
        *,
        ttl: Any = UNSET,
        type: Any = Any,
        version: int = 1,
        jitter: float = 0.1,
        negative_ttl: Any = 5.0,
        stale_while_revalidate: Any = 0.0,
        max_stale: Any = 0.0,
        beta: float = 1.0,
        lease_s: Any = LEASE_S,
        max_wait_s: Any = 30.0,
        max_back_off: Any = 15.0,
        max_bytes: int = 1_048_576,
        compress_over: int = 4096,
        local: LocalCache | None = None,
    ) -> None:
        if not isinstance(name, str) or not name or ":" in name:
            raise CacheConfigError(f"name={name!r}: give text without a colon, which begins the keys of the region")
        if ttl is UNSET:
            raise CacheConfigError(f"region {name!r} has no ttl: give the seconds its values are fresh")
        for what, number, least, most in (
            ("version", version, 0, 255), ("max_bytes", max_bytes, 1, 512 * 2**20), ("compress_over", compress_over, 0, 2**31),
        ):  # fmt: skip
            if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
                raise CacheConfigError(f"{what}={number!r}: give a whole number from {least} to {most}")
        self.name = name
        self.terms = checked(
            ttl=ttl, jitter=jitter, negative_ttl=negative_ttl, stale_while_revalidate=stale_while_revalidate,
            max_stale=max_stale, beta=beta, lease_s=lease_s, max_wait_s=max_wait_s, max_back_off=max_back_off,
        )  # fmt: skip
        self.local = local
        self.counters = Counters(name)
        self._prefix = name + ":"
        self._limits = (version, max_bytes, compress_over)
        self._codec = self._codec_for(type)
        self._codecs: dict[Any, Codec] = {}

    def key(self, key: Any) -> str:
        """Return the key as the fleet, the command line and `invalidate` know it. Raises `CacheKeyError`."""
        return full_key(self._prefix, key)

    def _codec_for(self, type: Any) -> Codec:
        return Codec(type, *self._limits)

    def _codec_of(self, type: Any) -> Codec:
        """Return the codec of a type given to a read; those of the last few are kept."""
        codec = self._codecs.get(type)
        if codec is None:
            if len(self._codecs) >= _MOST_CODECS:
                self._codecs = {}  # not emptied: another thread may be reading it
            codec = self._codecs[type] = self._codec_for(type)
        return codec

    def _named(self, keys: Iterable[Any]) -> dict[Any, str]:
        """Return keys once each, with their full names. Raises `CacheKeyError` for two that only Python takes for one."""
        if isinstance(keys, str | bytes):
            raise CacheKeyError(f"keys={keys!r} is a {type(keys).__name__}: give a list or tuple")
        named: dict[Any, str] = {}
        for key in keys:
            full = self.key(key)
            if named.setdefault(key, full) != full:
                raise CacheKeyError(f"key={key!r} equals another of the keys, but is not the same: ask for one of them")
        return named

    def _call(self, key: str, tags: Any, ttl: Any = None, type: Any = None) -> Call:
        """Return the question for a full key."""
        if type is None:
            codec, local = self._codec, self.local
        else:
            codec, local = self._codec_of(type), None  # the memory of the process keeps no types
        lives = self.terms.ttl if ttl is None else seconds("ttl", ttl, above=True)
        return Call(key, tag_names(tags) if tags else (), lives, codec, self.terms, self.counters, local)

    def _kept(self, full: str, tags: Any, type: Any) -> Any:
        """Return the value that the memory of this process keeps, or `MISSING`; one asked for as another type is not there."""
        if self.local is None or type is not None:
            return MISSING
        kept = self.local.get(full, tag_names(tags) if tags else ())
        if kept is None:
            return MISSING
        try:
            return self._codec.decode(*kept)
        except Undecodable:  # kept by another region of this name, with another type
            return MISSING

    def _many(self, keys: Iterable[Any], ttl: Any, tags: Any, type: Any) -> tuple[dict[Any, Any], dict[Any, Call]]:
        """Return what the memory of this process keeps of many keys, None for the others, and the questions for those."""
        found: dict[Any, Any] = {}
        calls: dict[Any, Call] = {}
        for key, full in self._named(keys).items():
            kept = self._kept(full, tags, type)
            found[key] = None if kept is MISSING else kept  # now, for the order
            if kept is MISSING:
                calls[key] = self._call(full, tags, ttl, type)
        self.counters.hits.inc(len(found) - len(calls))
        return found, calls
