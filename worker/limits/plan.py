"""What a tree of subjects may spend: budgets as text, spend in whole numbers, and which budget holds for which subject."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from worker.errors import InvalidLimit
from worker.limits.rate import NUMBER

Period = Literal["minute", "hour", "day", "month"]

#: What is counted, in the order in which it stands everywhere. A micro is a millionth of the money of the price table.
AMOUNTS = ("requests", "tokens", "micros")
#: The largest amount: what a number in Redis holds exactly.
MOST = 2**53 - 1
#: The largest of each amount, as the record has room for it.
MOST_OF = {"requests": 2**31 - 1, "tokens": MOST, "micros": MOST}
#: Levels of a subject: more would be charged one by one with each call.
MOST_LEVELS = 6

_CAP = re.compile(rf"({NUMBER}) (requests?|tokens?|micros?) ?(?:/|per) ?(minute|hour|day|month)")
_LEVEL = re.compile(r"[a-z][a-z0-9_]*:[^\s/*]{1,100}")
_LEVEL_PATTERN = re.compile(r"[a-z][a-z0-9_]*:(?:\*|[^\s/*]{1,100})")


class Spend(NamedTuple):
    """What a call takes, or took. `micros` is None when it has no price."""

    requests: int = 1
    tokens: int = 0
    micros: int | None = 0

    def check(self) -> Spend:
        """Return itself. Raises `InvalidLimit` unless it is whole numbers from 0."""
        for name, value in zip(AMOUNTS, self, strict=True):
            whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_OF[name]
            if not whole and not (name == "micros" and value is None):
                raise InvalidLimit(f"{name}={value!r}: give a whole number from 0; money in millionths, never in floats")
        return self


class Window(NamedTuple):
    """One subject in one period."""

    period: Period
    subject: str


@dataclass(frozen=True, slots=True)
class Budget:
    """The most a subject may spend in each period; None for no bound. Made by `parse_budget`."""

    caps: tuple[tuple[Period, tuple[int | None, int | None, int | None]], ...]

    @property
    def has_money(self) -> bool:
        """Whether it bounds money, so that a call needs a price."""
        return any(cap[2] is not None for _, cap in self.caps)

    def __str__(self) -> str:
        named = [(period, zip(AMOUNTS, cap, strict=True)) for period, cap in self.caps]
        return ", ".join(f"{most} {name}/{period}" for period, caps in named for name, most in caps if most is not None)


def parse_budget(text: str) -> Budget:
    """Read a budget: caps of requests, tokens or micros a minute, hour, day or month, separated by commas.

    A minute and an hour slide; a day and a month are those of the calendar, in UTC. Raises `InvalidLimit` that quotes what is
    wrong.

        >>> str(parse_budget("60 requests/minute, 5_000_000 micros/day"))
        '60 requests/minute, 5000000 micros/day'
    """
    caps: dict[Period, list[int | None]] = {}
    for part in text.split(",") if isinstance(text, str) else [repr(text)]:
        found = _CAP.fullmatch(" ".join(part.lower().split()))
        if not found:
            raise InvalidLimit(
                f"budget: {part.strip()!r} cannot be understood; write whole numbers like 100 tokens/minute, 5000000 micros/day"
            )
        index = AMOUNTS.index(found[2].rstrip("s") + "s")
        most = int(found[1])
        cap = caps.setdefault(found[3], [None, None, None])  # type: ignore[arg-type]
        if cap[index] is not None or most > MOST:
            raise InvalidLimit(f"budget: {part.strip()!r} is named twice, or is more than {MOST}")
        cap[index] = most
    return Budget(tuple((period, (cap[0], cap[1], cap[2])) for period, cap in caps.items()))


def levels(subject: str) -> list[str]:
    """Return a subject and those above it, the root first: `org:acme`, `org:acme/user:7`. Raises `InvalidLimit`."""
    parts = subject.split("/") if isinstance(subject, str) else []
    if not 1 <= len(parts) <= MOST_LEVELS or not all(_LEVEL.fullmatch(part) and part.isprintable() for part in parts):
        raise InvalidLimit(f"subject: {subject!r} is not 1 to {MOST_LEVELS} levels like org:acme/user:7/key:3")
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


class Plan:
    """The budgets of subjects, by subject or by pattern: in `org:*/user:*` a star stands for any name; what is named wins."""

    def __init__(self, budgets: Mapping[str, str | Budget]) -> None:
        """Take the budgets. Raises `InvalidLimit`."""
        for pattern in budgets:
            if not all(_LEVEL_PATTERN.fullmatch(part) for part in pattern.split("/")):
                raise InvalidLimit(f"subject: {pattern!r} is not a pattern like org:*/user:7")
        self._budgets = {key: value if isinstance(value, Budget) else parse_budget(value) for key, value in budgets.items()}
        # Compared level by level from the root, a name stands before a star.
        self._patterns = sorted(self._budgets, key=lambda pattern: [part.endswith(":*") for part in pattern.split("/")])

    def budget_of(self, subject: str) -> Budget | None:
        """Return the budget of one level, if it has one."""
        exact = self._budgets.get(subject)
        if exact is not None:
            return exact
        return next((self._budgets[pattern] for pattern in self._patterns if _fits(pattern, subject)), None)

    def budgets_of(self, subject: str) -> list[tuple[str, Budget]]:
        """Return each level of a subject that has a budget, the root first. Raises `InvalidLimit`."""
        found = [(level, self.budget_of(level)) for level in levels(subject)]
        return [(level, budget) for level, budget in found if budget is not None]


def _fits(pattern: str, subject: str) -> bool:
    wanted, given = pattern.split("/"), subject.split("/")
    return len(wanted) == len(given) and all(
        want == have or (want.endswith(":*") and have.startswith(want[:-1])) for want, have in zip(wanted, given, strict=True)
    )
