"""A declared limit: what it asks Redis, how it reads the answer, and what it says when none comes."""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, get_args

from worker.errors import InvalidLimit
from worker.limits.decision import Decision
from worker.limits.rate import Algorithm, Rate, parse_rate
from worker.limits.share import share
from worker.settings import settings
from worker.store import keys, script
from worker.telemetry import LIMIT_OUTAGES, LIMITED

#: What a limit does when Redis does not answer in time: refuse, let each process have its share, or admit.
OnOutage = Literal["closed", "local", "open"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
#: Characters of a key that stand in Redis as they are; of a longer one its digest does, so that a counter stays small.
_LONGEST = 36
_BEGINNING = 12
#: Seconds after which to come again when Redis is away: so long it is spared.
_AWAY_S = 1.0

_ONE = {algorithm: script(f"limit_{algorithm}+limit_one") for algorithm in Algorithm}
_ALL = script("+".join(f"limit_{algorithm}" for algorithm in Algorithm) + "+limit_all")


class Limit:
    """A rate with a name and an outage policy; what `Limiter` and `AsyncLimiter` have in common."""

    def __init__(self, rate: str | Rate, *, name: str, on_outage: OnOutage = "closed") -> None:
        """Declare a limit. Raises `InvalidLimit` that names what is wrong and the accepted form."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidLimit(f"name: {name!r} is not 1 to 64 letters, digits, dots, dashes and underscores")
        if on_outage not in get_args(OnOutage):
            raise InvalidLimit(f"on_outage: {on_outage!r} is none of {', '.join(get_args(OnOutage))}")
        self.rate = rate if isinstance(rate, Rate) else parse_rate(rate)
        self.name = name
        self.on_outage: OnOutage = on_outage
        self._said = str(self.rate)
        self._way = self.rate.way
        self._sha = _ONE[self.rate.algorithm].sha
        self._numbers = (self.rate.limit, self.rate.period_us, self.rate.burst)
        self._counts = (LIMITED.labels(name, "refused"), LIMITED.labels(name, "allowed"))

    def counter(self, key: str) -> str:
        """Return the Redis key that counts for this key. Raises `InvalidLimit` when it is not a text."""
        if not isinstance(key, str):
            raise InvalidLimit(f"key={key!r}: give a text")
        return keys.limit(f"{self.name}:{short(key)}", self._way)

    def command(self, verb: str, key: str, cost: int, holder: str) -> tuple[Any, ...]:
        """Return the command that asks or charges. Raises `InvalidLimit` and `CostTooHigh`."""
        self.rate.check_cost(cost)
        self._check_holder(holder)
        return ("EVALSHA", self._sha, 1, self.counter(key), verb, holder, cost, *self._numbers)

    def part(self, key: str, cost: int, holder: str) -> tuple[str, tuple[Any, ...]]:
        """Return its counter and arguments in a command over several limits. Raises as `command`."""
        self.rate.check_cost(cost)
        self._check_holder(holder)
        return self.counter(key), (self.rate.algorithm.value, cost, *self._numbers)

    def _check_holder(self, holder: str) -> None:
        if self.rate.algorithm is Algorithm.SLOTS and not holder:
            raise InvalidLimit(f"limit {self.name!r} lends slots: use `hold`, or say who the holder is and release it")

    def decision(self, key: str, answer: Sequence[int]) -> Decision:
        """Read what the script answered, and count it."""
        self.count(answer[0])
        return self.reading(key, answer)

    def count(self, fits: int) -> None:
        """Count a decision."""
        self._counts[fits].inc()

    def reading(self, key: str, answer: Sequence[int]) -> Decision:
        """Read what the script answered."""
        fits, left, retry, reset = answer
        return Decision(fits == 1, f"{self.name}:{key}", self._said, left, retry / 1_000_000, reset / 1_000_000)

    def without(self, key: str, cost: int, holder: str, *, take: bool = True) -> Decision:
        """Decide without Redis, as the outage policy says, and count it."""
        LIMIT_OUTAGES.labels(self.name, self.on_outage).inc()
        return self.alone(key, cost, holder, take=take)

    def alone(self, key: str, cost: int, holder: str, *, take: bool) -> Decision:
        """Return what the outage policy says."""
        fits, left, retry = self.on_outage == "open", 0, _AWAY_S
        if self.on_outage == "local":
            fits, left, retry = share().ask(self.rate, self.counter(key), cost, holder, settings().limits_fleet_size, take=take)
        return Decision(fits, f"{self.name}:{key}", self._said, left, 0.0 if fits else retry, 0.0, self.on_outage)


def short(key: str) -> str:
    """Return a key of any length and signs as it stands in Redis: of one that takes much room its beginning and a digest."""
    if len(key) <= _LONGEST and key.isascii():
        return key
    beginning = key[:_BEGINNING].encode("ascii", "replace").decode()
    digest = urlsafe_b64encode(blake2b(key.encode(errors="surrogatepass"), digest_size=15).digest()).decode()
    return f"{beginning}~{digest}"


class Charge(NamedTuple):
    """A cost on one limit for one key, to be decided together with others."""

    limit: Limit
    key: str = ""
    cost: int = 1

    @property
    def slot(self) -> bool:
        """Whether what it takes must be given back."""
        return self.limit.rate.algorithm is Algorithm.SLOTS

    def member(self, holder: str) -> str:
        """Return the holder's entry among the slots."""
        return f"{self.cost}:{holder}"


def command_over(charges: Sequence[Charge], verb: str, holder: str) -> tuple[Any, ...]:
    """Return the command that asks or charges several limits at once. Raises `InvalidLimit`, also for a counter named twice."""
    if not charges:
        raise InvalidLimit("charges: give at least one limit")
    parts = [charge.limit.part(charge.key, charge.cost, holder) for charge in charges]
    counters = [counter for counter, _ in parts]
    if len(set(counters)) < len(counters):
        twice = next(counter for counter in counters if counters.count(counter) > 1)
        raise InvalidLimit(f"charges: {twice!r} is named twice; charge it once, with the cost of both")
    return ("EVALSHA", _ALL.sha, len(counters), *counters, verb, holder, *(value for _, values in parts for value in values))


def decisions_over(charges: Sequence[Charge], answer: Sequence[int]) -> list[Decision]:
    """Read the answer to a command over several limits, and count it."""
    for charge, fits in zip(charges, answer[::4], strict=True):
        charge.limit.count(fits)
    return readings_over(charges, answer)


def readings_over(charges: Sequence[Charge], answer: Sequence[int]) -> list[Decision]:
    """Read the answer to a command over several limits."""
    rows = zip(*[iter(answer)] * 4, strict=True)
    return [charge.limit.reading(charge.key, row) for charge, row in zip(charges, rows, strict=True)]


def decisions_without(charges: Sequence[Charge], holder: str, *, take: bool = True) -> list[Decision]:
    """Decide over several limits without Redis, each as its policy says; none is charged when one of them refuses."""
    fits = all(charge.limit.alone(charge.key, charge.cost, holder, take=False) for charge in charges)
    return [charge.limit.without(charge.key, charge.cost, holder, take=take and fits) for charge in charges]
