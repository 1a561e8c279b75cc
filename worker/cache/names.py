"""What callers may name: keys and tags, checked, and turned into what Redis knows them by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from worker.errors import CacheConfigError, CacheKeyError
from worker.store import keys

#: What a caller may give as a key, or as a part of one in a tuple.
Part = str | int | bool | None | UUID | date
Key = str | tuple[Part, ...]

#: Longest key or tag, in bytes of UTF-8, region included: longer ones are values that strayed into a key.
MAX_BYTES = 1024
#: Characters that never come to more bytes than that.
_SURELY = MAX_BYTES // 4
#: How parts that are no text are told from text that looks like them.
_CONSTANTS = {None: "%n", True: "%t", False: "%f"}


def full_key(prefix: str, key: Any) -> str:
    """Return the key as the fleet knows it: the region's prefix and the parts, with colons between.

    A whole number and its text are the same part. Raises `CacheKeyError` that names the part and the accepted types.
    """
    if type(key) is not str:
        if not isinstance(key, tuple) or not key:
            raise CacheKeyError(f"key={key!r}: give text, or a tuple of {ACCEPTED}")
        key = ":".join([part_text(part) for part in key])
    if not key:
        raise CacheKeyError("key='': give text that is not empty")
    full: str = prefix + key
    if len(full) > _SURELY or not full.isascii():
        _check_length("key", full)
    return full


#: In words, for messages.
ACCEPTED = "str, int, bool, None, UUID, date or datetime"


def part_text(part: Any) -> str:
    """Return a part of a key as text, such that no two lists of parts come to the same key."""
    if isinstance(part, str):
        return part.replace("%", "%25").replace(":", "%3A") if "%" in part or ":" in part else part
    if part is None or isinstance(part, bool):
        return _CONSTANTS[part]
    if isinstance(part, int | UUID):
        return str(int(part)) if isinstance(part, int) else str(part)
    if isinstance(part, date):
        # The second of two hours of one name, when clocks are put back, is only told by its fold.
        again = "%2" if isinstance(part, datetime) and part.fold and part.tzinfo is None else ""
        return part.isoformat().replace(":", "%3A") + again
    raise CacheKeyError(f"key part {part!r} is a {type(part).__name__}: give {ACCEPTED}")


def tag_names(tags: Any) -> tuple[str, ...]:
    """Return the tags, sorted and once each. Raises `CacheKeyError` for anything but a list, tuple or set of text."""
    if not tags:
        return ()
    if not isinstance(tags, list | tuple | set | frozenset):
        raise CacheKeyError(f"tags={tags!r} is a {type(tags).__name__}: give a list or tuple of str")
    try:
        return _sorted_tags(tuple(tags))
    except TypeError:
        wrong = next(tag for tag in tags if not isinstance(tag, str))
        raise CacheKeyError(f"tag {wrong!r} is a {type(wrong).__name__}: give str") from None


@lru_cache(maxsize=4096)
def _sorted_tags(tags: tuple[Any, ...]) -> tuple[str, ...]:
    for tag in tags:
        if not isinstance(tag, str):
            raise CacheKeyError(f"tag {tag!r} is a {type(tag).__name__}: give str")
        if not tag:
            raise CacheKeyError("tag '': give text that is not empty")
        _check_length("tag", tag)
    if len(set(tags)) > _MOST_TAGS:
        raise CacheKeyError(f"{len(tags)} tags: an entry has at most {_MOST_TAGS}")
    return tuple(sorted(set(tags)))


#: Tags of one entry: each is checked at each read.
_MOST_TAGS = 32


@lru_cache(maxsize=4096)
def tags_command(tags: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command that reads the versions of tags."""
    return ("MGET", *map(keys.cache_tag, tags))


def each_once(given: Sequence[Any] | Iterable[Any], what: str) -> list[Any]:
    """Return a list without repetitions. Raises `CacheKeyError` for a lone text, which would be read as its characters."""
    if isinstance(given, str | bytes):
        raise CacheKeyError(f"{what}={given!r} is a {type(given).__name__}: give a list or tuple")
    return list(dict.fromkeys(given))


def seconds(name: str, value: Any, *, least: float = 0.0, above: bool = False) -> float:
    """Return a duration in seconds. Raises `CacheConfigError` that names the argument, the value and what is accepted."""
    number = value.total_seconds() if hasattr(value, "total_seconds") else value
    good = isinstance(number, int | float) and not isinstance(number, bool) and number == number and number <= _MOST_S
    if not good or number < least or (above and number <= least):
        bound = f"more than {least:g}" if above else f"at least {least:g}"
        raise CacheConfigError(f"{name}={value!r}: give seconds (or a timedelta), {bound} and at most {_MOST_S:g}")
    return float(number)


#: The longest life of an entry, in seconds: a year.
_MOST_S = 366 * 86_400


def _check_length(what: str, text: str) -> None:
    try:
        length = len(text.encode())
    except UnicodeEncodeError as exc:
        raise CacheKeyError(f"{what} {text!r} is no valid text: {exc.reason}") from None
    if length > MAX_BYTES:
        raise CacheKeyError(f"{what} {text[:40]!r}… has {length} bytes, more than {MAX_BYTES}")
