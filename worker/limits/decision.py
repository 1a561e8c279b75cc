"""What a limit says: whether it admits, what is left, and when to come again."""

from __future__ import annotations

from typing import NamedTuple

from worker.errors import LimitExceeded


class Decision(NamedTuple):
    """The answer of one limit, or of the one that decided for several. True when it admits."""

    allowed: bool
    #: The limit's name and the key, as `name:key`.
    limit: str
    rate: str
    #: What may still be charged; after a refusal, what could be charged at once.
    remaining: int
    #: Seconds until the same cost is admitted, if nobody else is charged meanwhile; 0 when it is admitted.
    retry_after_s: float
    #: Seconds until all of it is free again.
    reset_after_s: float
    #: The outage policy that decided because Redis did not: closed, local or open; empty when Redis did.
    policy: str = ""

    def __bool__(self) -> bool:
        return self.allowed

    def explain(self) -> str:
        """Return the decision as a sentence."""
        without = f", by its outage policy {self.policy!r}: Redis did not answer" if self.policy else ""
        if self.allowed:
            return f"{self.limit} ({self.rate}) admits; {self.remaining} left{without}"
        return f"{self.limit} ({self.rate}) refuses; {self.remaining} left, try again in {self.retry_after_s:.3f} s{without}"

    def check(self) -> Decision:
        """Return itself when it admits. Raises `LimitExceeded` with the limit and `retry_after` when it does not."""
        if not self.allowed:
            raise LimitExceeded(self.explain(), limit=self.limit, retry_after=self.retry_after_s, decision=self)
        return self


def strictest(decisions: list[Decision]) -> Decision:
    """Return the decision that speaks for all: the refusal with the longest wait, or the admission with the least left."""
    refusals = [decision for decision in decisions if not decision.allowed]
    if refusals:
        return max(refusals, key=lambda decision: decision.retry_after_s)
    return min(decisions, key=lambda decision: decision.remaining)
