"""A semaphore in Redis: so many holders at a time, each with a lease of its own."""

from __future__ import annotations

from worker.errors import InvalidLock
from worker.locks.names import checked_name
from worker.locks.queued import Queued
from worker.store import keys

#: Most holders of one semaphore: each is an entry of a sorted set that is looked through when one asks.
_MOST = 10_000


class Semaphore(Queued):
    """A semaphore by name that `permits` may hold at a time, each for `ttl_s` seconds, renewed and waited for as a `Lock`.

        with Semaphore("gpu", 2, ttl_s=10).acquire(wait_s=60):
            render()

    A thread may hold several. All who use a name must give the same number of permits: each goes by its own.

    Raises `InvalidLock` for a name, a number or a ttl that cannot be.

    **Guarantee:** while one Redis server lives and keeps its memory, no more than `permits` hold it; the permit of a holder who
    died is back after `ttl_s`. After a flush or a failover there may be as many again until the ttl of the former is over.
    """

    def __init__(self, name: str, permits: int, ttl_s: float, *, renew: bool = True, holder: str = "") -> None:
        if not isinstance(permits, int) or isinstance(permits, bool) or not 1 <= permits <= _MOST:
            raise InvalidLock(f"permits: {permits!r} is not a whole number from 1 to {_MOST:,}")
        super().__init__(checked_name(name), ttl_s, keys.semaphore(name), permits, renew=renew, holder=holder)
        self.permits = permits
