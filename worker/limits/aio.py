"""The limits for asyncio: the same decisions, without a thread that waits."""

from __future__ import annotations

from collections.abc import Sequence

from worker.errors import StoreUnavailable
from worker.limits.decision import Decision, strictest
from worker.limits.limit import Charge, Limit, command_over, decisions_over, decisions_without
from worker.store.aio import limits


class AsyncLimiter(Limit):
    """A limit for each key, as `Limiter`, with its guarantee; both may count on the same keys."""

    async def try_acquire(self, key: str = "", cost: int = 1, *, holder: str = "") -> Decision:
        """Charge the cost if it fits and tell, as `Limiter.try_acquire`."""
        command = self.command("take", key, cost, holder)
        try:
            (answer,) = await limits().ask((command,))
        except StoreUnavailable:
            return self.without(key, cost, holder)
        return self.decision(key, answer)

    async def acquire(self, key: str = "", cost: int = 1, *, holder: str = "") -> Decision:
        """Charge the cost. Raises `LimitExceeded` when it does not fit, else as `Limiter.try_acquire`."""
        return (await self.try_acquire(key, cost, holder=holder)).check()

    async def peek(self, key: str = "", cost: int = 1) -> Decision:
        """Tell what would be said of the cost now, and charge nothing."""
        command = self.command("peek", key, cost, "?")
        try:
            (answer,) = await limits().ask((command,))
        except StoreUnavailable:
            return self.without(key, cost, "?", take=False)
        return self.decision(key, answer)

    async def reset(self, key: str = "") -> None:
        """Forget what was charged. Raises `StoreUnavailable`."""
        await limits().ask((("DEL", self.counter(key)),))

    def on(self, key: str = "", cost: int = 1) -> Charge:
        """Return the cost on this limit, for `try_acquire_all`."""
        return Charge(self, key, cost)


async def try_acquire_all(charges: Sequence[Charge], *, holder: str = "") -> Decision:
    """Charge several limits, all or none, in one round trip; return the strictest decision, as `limits.try_acquire_all`."""
    command = command_over(charges, "take", holder)
    try:
        (answer,) = await limits().ask((command,))
    except StoreUnavailable:
        return strictest(decisions_without(charges, holder))
    return strictest(decisions_over(charges, answer))
