"""The keys of a server, looked at a page at a time so that none waits for it: which are declared, and which have no end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import Any

from worker.store import keys, script
from worker.store.client import Role

#: Keys looked at in the first step of the server, and asked about in one round trip.
_PAGE = 300
#: Microseconds that further steps are to take: long enough that most of the time is not spent between them, short enough for who
#: waits. So many keys that take as long as the last ones did are looked at, within bounds.
_STEP_US = 1000
_PAGES = range(100, 1501)
#: Keys whose size and use are asked for; of more, these stand for the rest, for a page is a draw by the hash of the name.
_SAMPLE = 20_000
#: Shapes without a time to live of each of which one key's size is asked for as well: streams and queues, which are those that
#: grow.
_LASTING = 2_000
#: Digits, which tell one key of strangers from the next.
_DIGITS = re.compile(r"\d+")

_scan = script("keys_scan")
_TIME = ("TIME",)


@dataclass
class Shapes:
    """Keys by shape: how many there are of each, and one of them."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, shape: str, count: int, example: str) -> None:
        """Count keys of one shape."""
        self.counts[shape] += count
        self.examples.setdefault(shape, example)

    def by_prefix(self, role: str, queues: Set[str], wanted: Callable[[keys.KeyKind | None], bool]) -> dict[str, tuple[int, str]]:
        """Return how many keys are declared as is wanted, and one of them, by what they begin with."""
        found = Shapes()
        for shape, count in self.counts.items():
            example = self.examples[shape]
            if wanted(kind_of(example, role, queues)):
                found.add(prefix_of(example), count, example)
        return {prefix: (count, found.examples[prefix]) for prefix, count in found.counts.items()}


@dataclass
class Keyspace:
    """The keys of a server: those without a time to live, and the others."""

    lasting: Shapes = field(default_factory=Shapes)
    ending: Shapes = field(default_factory=Shapes)

    def undeclared(self, role: str, queues: Set[str]) -> dict[str, tuple[int, str]]:
        """Return how many keys no feature of ours writes on a server of this role, and one of them, by what they begin with."""
        everything = Shapes(self.lasting.counts + self.ending.counts, {**self.lasting.examples, **self.ending.examples})
        return everything.by_prefix(role, queues, lambda kind: kind is None)

    def endless(self, role: str, queues: Set[str]) -> dict[str, tuple[int, str]]:
        """Return how many keys should have a time to live and have none, and one of them, by what they begin with."""
        return self.lasting.by_prefix(role, queues, lambda kind: kind is None or kind.ends)


@dataclass(frozen=True)
class Sized:
    """A key, its size in bytes, and how often it is used by the measure of LFU, from 0 to 255; None where nobody counts."""

    key: str
    type: str
    bytes: int
    frequency: int | None


def read_keyspace(role: Role) -> Keyspace:
    """Look at all keys of a server. Raises `StoreUnavailable`, and `StoreRefused` where scripts are not allowed."""
    found, cursor, page = Keyspace(), b"0", _PAGE
    while True:
        before, (cursor, lasting, ending), after = role.ask([_TIME, _scan.command([], [cursor, page]), _TIME])
        for shapes, told in ((found.lasting, lasting), (found.ending, ending)):
            for shape, count, example in zip(told[::3], told[1::3], told[2::3], strict=True):
                shapes.add(_DIGITS.sub("0", _text(shape)), count, _text(example))
        if cursor == b"0":
            return found
        page = _next_page(page, _microseconds(after) - _microseconds(before))


def _next_page(page: int, took_us: int) -> int:
    """Return how many keys to look at next; a quarter more at most, for one step may have been short by chance."""
    return max(_PAGES[0], min(_PAGES[-1], page * 5 // 4, page * _STEP_US // max(took_us, 1)))


def _microseconds(time: Any) -> int:
    return int(time[0]) * 1_000_000 + int(time[1])


def end_copies(role: Role, life_s: int) -> int:
    """Give what is ours in the cache, should end and does not a time to live; return how many keys have got one."""
    ended = 0
    for page in _scanned(role):
        ages = role.ask([("PTTL", key) for key in page])
        ours = [key for key, ttl in zip(page, ages, strict=True) if ttl == -1 and _ends(key)]
        ended += sum(role.ask([("EXPIRE", key, life_s) for key in ours])) if ours else 0
    return ended


def _ends(key: bytes) -> bool:
    kind = kind_of(_text(key), "cache", frozenset())
    return kind is not None and kind.ends


def sizes(role: Role, lasting: Shapes, *, lfu: bool) -> Iterator[Sized]:
    """Yield size and use of a sample of the keys, and of one of each shape that has no time to live."""
    questions = [("MEMORY", "USAGE"), ("TYPE",), *([("OBJECT", "FREQ")] if lfu else [])]
    for page in _sample(role, lasting):
        answers = role.ask([(*words, key) for key in page for words in questions])
        for at, key in enumerate(page):
            size, kind, *often = answers[at * len(questions) : (at + 1) * len(questions)]
            if size is not None:
                yield Sized(_text(key), kind.decode(), int(size), int(often[0]) if often else None)


def _sample(role: Role, lasting: Shapes) -> Iterator[list[bytes]]:
    chosen = [key.encode(errors="surrogateescape") for key in islice(lasting.examples.values(), _LASTING)]
    yield from (chosen[start : start + _PAGE] for start in range(0, len(chosen), _PAGE))
    seen = 0
    for page in _scanned(role):
        yield page
        seen += len(page)
        if seen >= _SAMPLE:
            return


def _scanned(role: Role) -> Iterator[list[bytes]]:
    cursor = b"0"
    while True:
        ((cursor, page),) = role.ask([("SCAN", cursor, "COUNT", _PAGE)])
        if page:
            yield page
        if cursor == b"0":
            return


def kind_of(key: str, role: str, queues: Set[str]) -> keys.KeyKind | None:
    """Return what a key on a server of this role is declared as; None for one that is not ours."""
    if role == keys.KINDS[0].role and any(key in keys.queue_lists(name) for name in queues):
        return keys.KINDS[0]
    return next((kind for kind, pattern in _patterns(role) if pattern.fullmatch(key)), None)


@cache
def _patterns(role: str) -> list[tuple[keys.KeyKind, re.Pattern[str]]]:
    """Return the kinds of keys of a role, the longest patterns first: what they begin with is the most particular."""
    kinds = [kind for kind in keys.KINDS[1:] if kind.role == role]
    return [(kind, _pattern(kind.pattern)) for kind in sorted(kinds, key=lambda kind: -len(kind.pattern))]


def _pattern(text: str) -> re.Pattern[str]:
    parts = re.split(r"(<\w+>)", text.replace("<stream>", "holdfast:<stream>"))
    return re.compile("".join(".+" if part.startswith("<") else re.escape(part) for part in parts), re.DOTALL)


def prefix_of(key: str) -> str:
    """Return what a key begins with: up to the brace, the last colon before what tells it from its like, or the first digit."""
    head = re.split(r"[{\d\x06]", key, maxsplit=1)[0]
    return (head[: head.rfind(":") + 1] if ":" in head else head) or key[:20]


def _text(key: Any) -> str:
    return bytes(key).decode(errors="surrogateescape")
