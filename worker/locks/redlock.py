"""A lock on most of several independent Redis servers: Redlock, with its arithmetic and what is said against it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import lru_cache
from random import uniform
from types import TracebackType
from typing import Self

from worker.errors import InvalidLock, LockBusy, LockLost, StoreUnavailable
from worker.locks.held import forget, refuse_reentry, remember
from worker.locks.lease import release
from worker.locks.names import checked_holder, checked_name, checked_ttl_ms, checked_wait_s, new_token
from worker.settings import settings
from worker.store import Lease, Loss, Role, counted_on, keeper, keys

#: Fewest servers: of fewer than three the loss of one is the loss of the lock, and one server is a `Lock`.
_FEWEST = 3
#: Seconds between two tries, at random, so that those who split the servers between them do not do so again.
_BETWEEN_S = (0.02, 0.1)
#: Seconds between two looks of one who waits for the loss: there is no single moment of which it could be told.
_LOOK_S = 0.05


class QuorumLoss:
    """Whether a lock on several servers was lost: fewer than a majority of its leases can still be counted on."""

    def __init__(self, losses: Sequence[Loss], quorum: int) -> None:
        self._losses, self._quorum = losses, quorum

    def is_set(self) -> bool:
        """Tell whether it was lost by now."""
        return sum(not loss.is_set() for loss in self._losses) < self._quorum

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, `timeout` seconds at most, and tell whether it was lost."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while not self.is_set() and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(_LOOK_S, left))
        return self.is_set()


class HeldRedlock:
    """A Redlock that was taken; given up by `release` or at the end of a `with`. It has no fencing token."""

    def __init__(self, name: str, key: str, leases: Sequence[Lease], losses: Sequence[Loss], quorum: int) -> None:
        self.name = name
        self.lost = QuorumLoss(losses, quorum)
        self._leases = leases
        self._key, self._noted = key, remember(self, key)
        for lease in leases:
            keeper().add(lease)

    def check(self) -> None:
        """Raise `LockLost` if it was lost by now."""
        if self.lost.is_set():
            raise self._was_lost()

    def release(self) -> bool:
        """Give it up on all servers; tell whether it was held until now. Where a server is away its lease runs out."""
        leases, self._leases = self._leases, ()
        held = bool(leases) and not self.lost.is_set()
        forget(self, self._key, self._noted)
        for lease in leases:
            keeper().remove(lease)
            release(lease.key, lease.token, lease.role)
        return held

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        if self._leases and not self.release() and exc is None:
            raise self._was_lost()

    def _was_lost(self) -> LockLost:
        return LockLost(f"lock {self.name!r} was lost: most of its leases were over before its holder was done", name=self.name)


class Redlock:
    """A lock by name on most of N independent Redis servers (`servers`, by default the setting `redlock_urls`).

        with Redlock("report:7", ttl_s=10).acquire(wait_s=5):
            ...

    The algorithm is the one of the Redis documentation: ask every server for a lease, with a timeout that is small beside the
    ttl; it is held when a majority, N // 2 + 1, gave one, and for `ttl_s` less the time that asking took and less the drift of
    clocks, a hundredth of the ttl and two milliseconds. Otherwise all leases are given back, and it is tried again after a
    moment at random. There is no queue: nobody could say in which order N servers were asked.

    It survives the loss of a minority of servers. It is no better than `Lock` in all other respects, and worse in some. What is
    said against it, first by Martin Kleppmann in 2016, holds for this implementation:

    - It has no fencing token, because a majority has no counter that grows for all. A holder who is paused past its ttl, by a
      collection of garbage, a page fault or a virtual machine that moved, goes on writing when it wakes up.
    - It takes clocks and networks for bounded: a server whose clock jumps ends a lease early, and two hold the lock.
    - A server that restarts without what it knew may give the same lease twice; then two have a majority. Let such a server
      stay away for longer than the longest ttl, or let each sync every write to disk.

    So it is for the same thing as `Lock`: not doing the same work twice. Where doing it twice is wrong, use `AdvisoryLock`, or a
    `Lock` whose fence the receiver checks.

    Raises `InvalidLock` for a name, a ttl or servers that cannot be, `LockReentered` where a thread would wait for itself.

    **Guarantee:** while a majority of the servers keep their memory and no clock among them gains more than the drift, nobody
    else holds the lock until its ttl is over. A holder who died leaves it free after `ttl_s`.
    """

    def __init__(self, name: str, ttl_s: float, servers: Sequence[str] | None = None, *, holder: str = "") -> None:
        self.name = checked_name(name)
        self._ttl_ms = checked_ttl_ms(ttl_s)
        self._holder = checked_holder(holder)
        self._key = keys.redlock(name)
        self._roles = _roles(tuple(settings().redlock_urls if servers is None else servers), settings().redlock_timeout_ms)
        self._quorum = len(self._roles) // 2 + 1

    def try_acquire(self) -> HeldRedlock | None:
        """Take it on a majority of servers now, or return None. Raises `StoreUnavailable` when most servers do not answer."""
        refuse_reentry(self.name, self._key)
        token, leases, losses, away = new_token(self._holder), [], [], 0
        until = time.monotonic() + counted_on(self._ttl_ms)  # the time that asking takes counts against every lease
        for n, role in enumerate(self._roles):
            loss = Loss(until)
            lease = Lease(self._key, f"{token}{n}", self._ttl_ms, role, loss)  # each its own: the keeper tells leases apart by it
            try:
                (taken,) = role.ask([("SET", lease.key, lease.token, "NX", "PX", lease.ttl_ms)])
            except StoreUnavailable:
                away += 1  # it may have given the lease all the same: it is asked to take it back with the others
                leases.append(lease)
                continue
            if taken:
                leases.append(lease)
                losses.append(loss)
        if sum(not loss.is_set() for loss in losses) >= self._quorum:
            return HeldRedlock(self.name, self._key, leases, losses, self._quorum)
        for lease in leases:
            release(lease.key, lease.token, lease.role)
        if away > len(self._roles) - self._quorum:
            raise StoreUnavailable(f"{away} of the {len(self._roles)} servers of Redlock did not answer")
        return None

    def acquire(self, wait_s: float = 0.0) -> HeldRedlock:
        """Take it, trying for `wait_s` seconds at most, also while servers are away; to be used in a `with`.

        Raises `LockBusy` when others held it all the time, `StoreUnavailable` when most servers did not answer at the end.
        """
        deadline = time.monotonic() + checked_wait_s(wait_s)
        while True:
            away = None
            try:
                held = self.try_acquire()
            except StoreUnavailable as exc:
                held, away = None, exc
            if held is not None:
                return held
            pause = uniform(*_BETWEEN_S)
            if time.monotonic() + pause > deadline:
                raise away or LockBusy(f"lock {self.name!r} is held by others", name=self.name)
            time.sleep(pause)


@lru_cache(maxsize=16)
def _roles(urls: tuple[str, ...], timeout_ms: int) -> tuple[Role, ...]:
    if len(urls) < _FEWEST or len(urls) % 2 == 0 or len(set(urls)) < len(urls):
        raise InvalidLock(f"servers: {len(set(urls))} different of {len(urls)}; Redlock needs an odd number, at least {_FEWEST}")
    return tuple(Role(f"redlock-{n}", url, timeout_ms / 1000) for n, url in enumerate(urls, 1))


os.register_at_fork(after_in_child=_roles.cache_clear)
