"""Taking the lease to load an entry, under the versions its tags have at that time."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from typing import Any

from worker.cache.call import Call
from worker.cache.effects import Ask, ask
from worker.cache.entry import TOKEN, Tag, digest
from worker.store import keys, script

_lease, _tag = script("cache_lease"), script("cache_tag")

#: What `cache_lease.lua` answers.
_CHANGED, GRANTED, HELD, FAILED, OTHER_TAGS = range(5)
#: Least life of a tag's version in milliseconds: longer than most entries, so that it rarely needs prolonging.
_TAG_MS = 86_400_000
#: So many failures in a row that the back-off is the longest.
_EVER = 17


def new_lease(tags: Sequence[Tag], token: str | None = None) -> str:
    """Return a new lease: who loads, and under which tags. Only the same tags may share a load."""
    return f"{token or os.urandom(TOKEN // 2).hex()}:{digest(tags)}"


def try_lease(call: Call, lease: str, seen: bytes, take_over: bool, after: str = "") -> Generator[Ask, Any, list[Any]]:
    """Ask for the lease, also where the lease `after` stands, and return what `cache_lease.lua` answers."""
    (answer,) = yield from ask([lease_command(call, lease, seen, take_over, after)])
    return list(answer)


def lease_command(call: Call, lease: str, seen: bytes, take_over: bool = False, after: str = "") -> tuple[Any, ...]:
    """Return the command that takes the lease, unless there is another entry than the one seen."""
    terms = call.terms
    return _lease.command(
        [call.entry_key, call.lease_key], [lease, terms.lease_ms, seen, int(take_over), after, terms.back_off_ms(_EVER)]
    )


def versions(tags: tuple[Tag, ...]) -> Generator[Ask, Any, tuple[Tag, ...]]:
    """Return the tags with versions for those that had none; they must be read before the load begins."""
    missing = [tag for tag in tags if tag.version is None]
    if not missing:
        return tags
    made = yield from ask(prolong(missing, _TAG_MS))
    found = dict(zip((tag.name for tag in missing), made, strict=True))
    return tuple(tag if tag.version is not None else Tag(tag.name, found[tag.name]) for tag in tags)


def prolong(tags: Sequence[Tag], life_ms: int) -> list[tuple[Any, ...]]:
    """Return the commands that let tags outlive an entry, and tell their versions."""
    life = max(_TAG_MS, 2 * life_ms)
    return [_tag.command([keys.cache_tag(tag.name.decode())], [os.urandom(TOKEN // 2).hex(), life]) for tag in tags]


def tags_now(call: Call) -> Generator[Ask, Any, tuple[tuple[Tag, ...], list[bytes]]]:
    """Read the versions of the tags the caller named, and the server's time: seconds and microseconds."""
    if not call.tags:
        (now,) = yield from ask([("TIME",)])
        return (), now
    now, found = yield from ask([("TIME",), call.tags_command])
    return tuple(map(Tag, call.tag_bytes, found)), now
