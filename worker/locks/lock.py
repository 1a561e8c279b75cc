"""A lock in Redis that one holder has at a time, with a fencing token and a queue of those who wait."""

from __future__ import annotations

from worker.locks.held import Held, refuse_reentry
from worker.locks.queued import Answer, Queued
from worker.store import keys


class Lock(Queued):
    """A lock by name, held for `ttl_s` seconds at a time.

        with Lock("report:7", ttl_s=10).acquire(wait_s=5) as held:
            write_report(fence=held.fence)

    While it is held, one thread of the process renews its lease at a third of `ttl_s`; with `renew=False` nobody does, and it is
    over after `ttl_s`. Those who wait are served in the order in which they came, told by the one who gives it up; one whose
    process died is passed over. `holder` is what `holdfast locks` shows, by default the host and process.

    Raises `InvalidLock` for a name or a ttl that cannot be, `LockReentered` where a thread would wait for itself.

    **Guarantee:** while one Redis server lives and keeps its memory, nobody else holds the lock until its ttl is over by the
    server's clock. A holder who died leaves it free after `ttl_s`; one that was cut off or paused is told by `lost` when it is no
    longer sure. Its fencing token is greater than that of each earlier holder, also after a flush, a restart or a failover,
    unless the clock of the server that is asked next is behind by more than the time that has passed. A Redis that fails over or
    is flushed may let two hold it at once: whoever writes must let the fence decide, or use `AdvisoryLock`.
    """

    def __init__(self, name: str, ttl_s: float, *, renew: bool = True, holder: str = "") -> None:
        super().__init__(name, ttl_s, keys.lock(name), 1, renew=renew, holder=holder)

    def _refuse(self) -> None:
        refuse_reentry(self.name, self._key)

    def _in_hand(self, token: str, answer: Answer) -> Held:
        held = super()._in_hand(token, answer)
        held.refuse_another()
        return held
