"""A look through the cache Redis in small steps: keys that would stay for ever, big ones, and ones that nobody declared."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from worker.store import cache, keys

#: Keys of one step: a millisecond or two of the server's time, in which it serves nobody else.
STEP = 200
#: Bytes over which an entry is called big.
BIG_BYTES = 262_144
#: Keys named in each part of a report; the counts beside them are whole.
_NAMED = 20


@dataclass
class Part:
    """One thing to look at: how many keys, how many bytes, and the first of them by name."""

    count: int = 0
    bytes: int = 0
    keys: list[str] = field(default_factory=list)

    def add(self, key: str, size: int) -> None:
        """Count a key."""
        self.count += 1
        self.bytes += size
        if len(self.keys) < _NAMED:
            self.keys.append(key)


@dataclass
class Report:
    """What was found. `whole` tells whether every key was looked at."""

    looked_at: int = 0
    bytes: int = 0
    whole: bool = True
    #: Keys by the pattern of their kind.
    kinds: dict[str, int] = field(default_factory=dict)
    without_ttl: Part = field(default_factory=Part)
    big: Part = field(default_factory=Part)
    unknown: Part = field(default_factory=Part)


def look(*, most: int = 1_000_000, big_bytes: int = BIG_BYTES) -> Report:
    """Look at up to `most` keys of the cache Redis and return what is off; changes nothing. Raises `StoreUnavailable`.

    It never takes the server for longer than a step, and rests after each as long as that took.
    """
    report, patterns = Report(), _patterns()
    for names in _steps():
        began = time.monotonic()
        for name, left_ms, size in _facts(names):
            _judge(report, patterns, name, left_ms, size, big_bytes)
        if report.looked_at >= most:
            report.whole = False
            return report
        time.sleep(time.monotonic() - began)
    return report


def _steps() -> Iterator[list[bytes]]:
    cursor = b"0"
    while True:
        ((cursor, names),) = cache().ask([("SCAN", cursor, "COUNT", STEP)])
        yield names
        if cursor == b"0":
            return


def _facts(names: list[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Yield each key with its life and its size in bytes; one that is gone meanwhile is left out."""
    answers = cache().ask([command for name in names for command in (("PTTL", name), ("MEMORY", "USAGE", name))])
    for name, left_ms, size in zip(names, answers[::2], answers[1::2], strict=True):
        if size is not None:
            yield name, left_ms, size


def _judge(report: Report, patterns: dict[str, re.Pattern[str]], raw: bytes, left_ms: int, size: int, big_bytes: int) -> None:
    name = raw.decode(errors="backslashreplace")
    report.looked_at += 1
    report.bytes += size
    kind = next((pattern for pattern, form in patterns.items() if form.fullmatch(name)), None)
    if kind is None:
        report.unknown.add(name, size)
    else:
        report.kinds[kind] = report.kinds.get(kind, 0) + 1
    if left_ms == -1:
        report.without_ttl.add(name, size)
    if size > big_bytes:
        report.big.add(name, size)


def _patterns() -> dict[str, re.Pattern[str]]:
    """Return the declared kinds of the cache role as expressions, the longest first: `…:lease` before `…`."""
    declared = sorted((kind.pattern for kind in keys.KINDS if kind.role == "cache"), key=len, reverse=True)
    return {pattern: re.compile(re.sub(r"<\w+>", ".+", re.sub(r"[{}]", r"\\\g<0>", pattern)), re.DOTALL) for pattern in declared}
