"""A lock in the hands of its holder: its fencing token, the news of its loss, and giving it up."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self

from worker.errors import LockLost, LockReentered, StoreUnavailable
from worker.locks.names import checked_ttl_ms
from worker.locks.turns import turns
from worker.locks.verbs import keys_of, verbs_of
from worker.store import Lease, Loss, counted_on, keeper
from worker.telemetry import OUTAGES


class Loseable(Protocol):
    """What can be held, and lost."""

    @property
    def lost(self) -> Happening: ...


class Happening(Protocol):
    """What can be asked of `lost`, as of a `threading.Event`."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...


class _Thread(threading.local):
    """What one thread has taken and not given up, by lease; it ends with the thread."""

    def __init__(self) -> None:
        self.holds: dict[str, Loseable] = {}


_thread = _Thread()
os.register_at_fork(after_in_child=lambda: _thread.holds.clear())


class Held:
    """A lock that was taken; given up by `release` or at the end of a `with`.

    - `fence`: grows with each holder of this lock. Send it along with what you write, and let the receiver refuse a smaller one
      than it has seen: that keeps out a holder who was paused and does not know that its lease is over.
    - `lost`: happens, like a `threading.Event`, when the lease is gone or may have run out.
    """

    def __init__(self, name: str, lease: Lease, loss: Loss, fence: int, *, renew: bool) -> None:
        self.name, self.fence, self.lost = name, fence, loss
        self._lease, self._renews, self._released = lease, renew, False
        self._noted: dict[str, Loseable] = {}
        if renew:
            keeper().add(lease)

    def refuse_another(self) -> None:
        """Keep this thread from waiting for what it holds itself."""
        self._noted = remember(self, self._lease.key)

    @property
    def token(self) -> str:
        """What proves to Redis that it is held."""
        return self._lease.token

    def check(self) -> None:
        """Raise `LockLost` if it was lost by now."""
        if self.lost.is_set():
            why = f"lock {self.name!r} was lost: its lease was over before its holder was done"
            raise LockLost(why, name=self.name, fence=self.fence)

    def extend(self, ttl_s: float) -> None:
        """Hold it for at least so many seconds more. Raises `LockLost`, or `StoreUnavailable` when Redis does not answer."""
        self.check()
        lease = replace(self._lease, ttl_ms=checked_ttl_ms(ttl_s))
        asked_at = time.monotonic()
        (held,) = lease.role.ask([lease.renewal.command([lease.key], [lease.token, lease.ttl_ms])])
        if not held:
            self.lost.set()
        self.check()
        self.lost.until = asked_at + counted_on(lease.ttl_ms)
        self._lease, before = lease, self._lease
        if self._renews:
            keeper().remove(before)
            keeper().add(lease)

    def release(self) -> bool:
        """Give it up, to the next who waits; tell whether it was held until now. Once more does nothing.

        While Redis is away its lease runs out, or is given up when Redis is back within a minute; that is counted.
        """
        if self._released:
            return False
        self._released = True
        keeper().remove(self._lease)
        key = self._lease.key
        forget(self, key, self._noted)
        giving_up = verbs_of(key).give_up.command(keys_of(key), [self.token])
        try:
            ((given_up, news),) = self._lease.role.ask([(*giving_up, turns().channel)])
        except StoreUnavailable:
            OUTAGES.labels("lock", "given up late").inc()
            keeper().drop(replace(self._lease, giving_up=giving_up))
            turns().ask_again()  # one of ours may have got it, which only the answer would have told
            return not self.lost.is_set()
        if news:
            turns().heard(turns().channel, news)
        if not given_up:
            self.lost.set()
        return bool(given_up)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        if not self._released and not self.release() and exc is None:
            self.lost.set()
            self.check()

    def __repr__(self) -> str:
        state = "released" if self._released else "lost" if self.lost.is_set() else "held"
        return f"<Held {self.name!r} fence={self.fence} {state}>"


def refuse_reentry(name: str, key: str) -> None:
    """Raise `LockReentered` when this thread holds it: what waits for itself would wait for ever."""
    mine = _thread.holds.get(key)
    if mine is not None and not mine.lost.is_set():
        raise LockReentered(f"lock {name!r} is held by this thread already; take it once, outside, and hand it on", name=name)


def remember(held: Loseable, key: str) -> dict[str, Loseable]:
    """Note that this thread holds it; return where that is noted, for `forget`, which another thread may do."""
    _thread.holds[key] = held
    return _thread.holds


def forget(held: Loseable, key: str, noted: dict[str, Loseable]) -> None:
    """Note that the thread that took it holds it no more."""
    if noted.get(key) is held:
        del noted[key]
