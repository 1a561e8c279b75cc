"""Leaderboards: members by value, over an hour, a day, a week or for good; of equal values the one reached first stands above."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from secrets import token_hex
from typing import Any, Literal, NamedTuple, get_args

from worker.errors import InvalidLive
from worker.store import coordination, keys, script

Window = Literal["hour", "day", "week", "all"]
How = Literal["add", "set", "best"]

#: Bits that a score has: a sorted set keeps doubles, which hold whole numbers up to 2^53.
_BITS = 53
#: The length of each window, in milliseconds. One for good counts its time in steps of a part of these forty years.
LENGTH_MS = {"hour": 3_600_000, "day": 86_400_000, "week": 604_800_000, "all": 40 * 31_557_600_000}
#: From where weeks are counted, so that they begin on Mondays; and from where time is that of a board for good: 2020.
_MONDAY_MS, _ALL_FROM_MS = 345_600_000, 1_577_836_800_000
#: For how long a board without a window is kept after its last score, in milliseconds.
_ALL_LIFE_MS = 35 * 86_400_000
#: For how long a board that is built anew may be unfinished, in milliseconds; and members sent in one round trip.
_BUILD_MS, _AT_ONCE = 3_600_000, 2000
#: Longest name of a member, in characters; most members that one call returns.
LONGEST, MOST = 512, 10_000

_add, _around, _load = (script(f"board_{name}") for name in ("add", "around", "load"))


class Place(NamedTuple):
    """One member: its rank from 1, and its value."""

    rank: int
    member: str
    value: int


class Score(NamedTuple):
    """What a board is built anew from: a member, its value, and when it was reached."""

    member: str
    value: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Board:
    """A leaderboard. Each window has its own members; a new one begins empty, the last one stays for as long again.

        callers = Board("callers", window="day")
        callers.add("acme")
        callers.top(10)                      # [Place(rank=1, member='acme', value=1)]
        callers.around("acme", beside=5)

    Values are whole numbers from 0 to `largest`. A score is a double of 53 bits: the value takes `largest.bit_length()` of them,
    and the rest tell when it was reached, in steps of the window's length by 2 to the number of them. With the usual 2^31 - 1
    that leaves 22 bits: steps of a millisecond in an hour, of 21 in a day, of 145 in a week. Who reached a value in the same
    step stands by name, the later letter first.

    **Guarantee:** a score is added whole or not at all, in one step with the bound on the members. It fails closed: every method
    raises `StoreUnavailable` while Redis is away, and an `add` whose answer was lost may have counted. A Redis that lost its
    memory shows empty boards until `rebuild`, which puts back exactly what stood: values, order and ties. Now is by the server's
    clock; when that jumps, what is scored meanwhile counts in the window the clock says.
    """

    name: str
    window: Window = "day"
    #: The highest value.
    largest: int = 2**31 - 1
    #: How many members it holds; the lowest falls off, and begins with nothing when it comes back.
    size: int = 100_000

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > LONGEST:
            raise InvalidLive(f"board: {self.name[:40]!r} is not a name of 1 to {LONGEST} characters")
        if self.window not in get_args(Window):
            raise InvalidLive(f"board {self.name}: window: {self.window!r} is none of {', '.join(get_args(Window))}")
        if type(self.largest) is not int or not 1 <= self.largest < 2 ** (_BITS - 4):
            raise InvalidLive(f"board {self.name}: largest: {self.largest!r} is not from 1 to 2^{_BITS - 4} - 1")
        if type(self.size) is not int or not 1 <= self.size <= 10_000_000:
            raise InvalidLive(f"board {self.name}: size: {self.size!r} is not from 1 to 10,000,000")

    # ---- scoring

    def add(self, member: str, by: int = 1, *, at: datetime | None = None) -> int:
        """Add to a member's value and return what stands. `at` is when, by default now: it decides the window, and ties.

        Raises `InvalidLive` for a value out of range, `StoreUnavailable`.
        """
        return self._score(member, by, "add", at)

    def set(self, member: str, value: int, *, at: datetime | None = None) -> int:
        """Let a member's value be this one."""
        return self._score(member, value, "set", at)

    def best(self, member: str, value: int, *, at: datetime | None = None) -> int:
        """Let a member's value be this one if it is higher, and return what stands."""
        return self._score(member, value, "best", at)

    def _score(self, member: str, value: int, how: How, at: datetime | None) -> int:
        self._check(member, value)
        moment = at or self._now()
        start, life = self._start_ms(moment), -_ALL_LIFE_MS if self.window == "all" else 2 * LENGTH_MS[self.window]
        at_ms = "" if at is None else _ms(at)
        args = [member, value, how, at_ms, start, self._step_ms, self._steps, self.largest, self.size, life]
        (stands,) = coordination().ask([_add.command([self._key(moment)], args)])
        if stands < 0:
            raise InvalidLive(f"board {self.name}: {member[:40]!r} would stand above its highest value, {self.largest}")
        return int(stands)

    # ---- looking

    def top(self, count: int = 10, *, at: datetime | None = None) -> list[Place]:
        """Return the first members, of the window that holds `at` or is now. Raises `StoreUnavailable`."""
        self._check_count(count)
        (found,) = coordination().ask([("ZREVRANGE", self._key(at or self._now()), 0, count - 1, "WITHSCORES")])
        return self._places(1, found)

    def around(self, member: str, beside: int = 5, *, at: datetime | None = None) -> list[Place]:
        """Return a member with those that stand above and below it; nothing for one that is not on the board."""
        self._check_count(beside + 1)
        (found,) = coordination().ask([_around.command([self._key(at or self._now())], [member, beside])])
        return [] if found is None else self._places(found[0] + 1, found[1])

    def place(self, member: str, *, at: datetime | None = None) -> Place | None:
        """Return a member's rank and value; None for one that is not on the board."""
        found = self.around(member, 0, at=at)
        return found[0] if found else None

    def _places(self, first: int, found: list[Any]) -> list[Place]:
        # Old servers send scores as text, those of RESP3 as numbers beside their member.
        flat = [value for pair in found for value in pair] if found and isinstance(found[0], list) else found
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return [Place(first + n, member.decode(), int(float(score)) // self._steps) for n, (member, score) in enumerate(pairs)]

    # ---- building anew

    def rebuild(self, scores: Iterable[Score], *, at: datetime | None = None) -> int:
        """Put these members, and no others, on the board of the window that holds `at` or is now; return how many stay on it.

        Readers see the old board until the new one is whole. Raises `InvalidLive`, `StoreUnavailable`: then the old one stays.
        """
        moment = at or self._now()
        key = self._key(moment)
        new = keys.board_new(key, token_hex(4))
        start, given = self._start_ms(moment), iter(scores)
        while part := list(islice(given, _AT_ONCE)):
            flat = [value for score in part for value in (self._encoded(score, start), score.member)]
            coordination().ask([("ZADD", new, *flat), ("PEXPIRE", new, _BUILD_MS)])
        ends = 0 if self.window == "all" else start + 2 * LENGTH_MS[self.window]
        (held,) = coordination().ask([_load.command([key, new], [self.size, ends, _ALL_LIFE_MS])])
        return int(held)

    def _encoded(self, score: Score, start_ms: int) -> int:
        self._check(score.member, score.value)
        place = max(0, min(self._steps - 1, (_ms(score.at) - start_ms) // self._step_ms))
        return score.value * self._steps + self._steps - 1 - place

    def forget(self, *, at: datetime | None = None) -> None:
        """Empty the board of the window that holds `at` or is now."""
        coordination().ask([("UNLINK", self._key(at or self._now()))])

    # ---- how time is kept in a score

    @property
    def _steps(self) -> int:
        return int(2 ** (_BITS - self.largest.bit_length()))

    @property
    def _step_ms(self) -> int:
        return -(-LENGTH_MS[self.window] // self._steps)

    def starts(self, moment: datetime) -> datetime:
        """Return when the window begins that holds a moment; hours, days and weeks are those of UTC."""
        return datetime.fromtimestamp(self._start_ms(moment) / 1000, UTC)

    def _start_ms(self, moment: datetime) -> int:
        if self.window == "all":
            return _ALL_FROM_MS
        offset = _MONDAY_MS if self.window == "week" else 0
        ms = _ms(moment) - offset
        return ms - ms % LENGTH_MS[self.window] + offset

    def _key(self, moment: datetime) -> str:
        if self.window == "all":
            return keys.board(self.name, "all")
        return keys.board(self.name, f"{self.window}:{self.starts(moment):%Y-%m-%dT%H}")

    def _now(self) -> datetime:
        if self.window == "all":
            return datetime.now(UTC)  # it decides nothing
        (found,) = coordination().ask([("TIME",)])
        return datetime.fromtimestamp(int(found[0]) + int(found[1]) / 1e6, UTC)

    def _check(self, member: str, value: int) -> None:
        if not isinstance(member, str) or not 0 < len(member) <= LONGEST:
            raise InvalidLive(f"board {self.name}: member: {str(member)[:40]!r} is not a text of 1 to {LONGEST} characters")
        try:
            member.encode()
        except UnicodeEncodeError as exc:
            raise InvalidLive(f"board {self.name}: member: {member[:40]!r} holds half a character, which no text can") from exc
        if type(value) is not int or not 0 <= value <= self.largest:
            raise InvalidLive(f"board {self.name}: value: {value!r} is not a whole number from 0 to {self.largest}")

    def _check_count(self, count: int) -> None:
        if type(count) is not int or not 1 <= count <= MOST:
            raise InvalidLive(f"board {self.name}: {count!r} members are not from 1 to {MOST}")


def _ms(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
