"""Time as people write it and as identifiers carry it."""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime, timedelta

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
#: The hexadecimal digit that carries the variant of a UUID, by a random one.
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|w)")


def now() -> datetime:
    """Return the present moment in UTC, by this machine's clock; never use it where servers decide."""
    return datetime.now(UTC)


def parse_duration(text: str) -> timedelta:
    """Parse `"90s"`, `"1h30m"`, `"2d"` or a bare number of seconds.

    Raises `ValueError` that quotes the text and names the accepted form.
    """
    stripped = text.strip().lower()
    try:
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", stripped):
            return timedelta(seconds=float(stripped))
        if stripped and not _PART.sub("", stripped):
            return timedelta(seconds=sum(float(n) * _UNITS[u] for n, u in _PART.findall(stripped)))
    except OverflowError:
        pass
    raise ValueError(f"{text!r} is not a duration; write it like 10s, 5m, 1h30m or 2d")


def parse_moment(text: str) -> datetime:
    """Parse an ISO 8601 moment; one without a zone is taken as UTC.

    Raises `ValueError` that quotes the text and names the accepted form.
    """
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError) as exc:
        raise ValueError(f"{text!r} is not a time; write it like 2030-01-31T08:00:00+01:00") from exc
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def uuid7() -> str:
    """Return a new UUID of version 7 (RFC 9562): 48 bits of milliseconds, then random; its text sorts by time."""
    moment, random = f"{time.time_ns() // 1_000_000:012x}", os.urandom(10).hex()
    return f"{moment[:8]}-{moment[8:]}-7{random[:3]}-{_VARIANT[random[3]]}{random[4:7]}-{random[7:19]}"
