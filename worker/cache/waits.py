"""Callers of this process that wait for another's load, and the one subscriber that wakes them."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from weakref import WeakSet

from worker.cache.entry import LEASE
from worker.cache.local import LocalCache
from worker.cache.signals import Signal
from worker.store import cache, keys
from worker.store.listening import Listener

#: The first byte of a message: filled, failed, or ask again.
FILLED, FAILED, AGAIN = b"f", b"x", b"d"


@dataclass(frozen=True, slots=True)
class News:
    """What became of a lease: its entry, or the marker of its failure; neither: ask again."""

    entry: bytes = b""
    failure: bytes = b""


_ASK_AGAIN = News()


class Waiter:
    """One caller that waits for the holder of a lease."""

    __slots__ = ("channel", "confirmed", "lease", "news")

    def __init__(self, channel: str, lease: bytes) -> None:
        self.channel, self.lease = channel, lease
        #: Happens when no news can be missed any more: what happened before must be asked for once.
        self.confirmed = Signal()
        #: Happens with `News`.
        self.news = Signal()

    def tell(self, message: bytes) -> None:
        """Take a message. What was stored under another lease may be older than the caller's question."""
        kind, lease, rest = message[:1], message[1 : 1 + LEASE], message[1 + LEASE :]
        if kind == FILLED and lease == self.lease:
            self.news.set(News(entry=rest))
        elif kind == FAILED and lease == self.lease:
            self.news.set(News(failure=rest))
        else:
            self.news.set(_ASK_AGAIN)


class Waits:
    """The waiting callers of one process, by the channel of what they wait for, and its layers in memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: dict[str, list[Waiter]] = {}
        self._open: set[str] = set()
        self._locals: WeakSet[LocalCache] = WeakSet()
        self._listener = Listener(cache, self)

    def join(self, channel: str, lease: bytes) -> Waiter:
        """Begin to wait; `leave` must follow."""
        waiter = Waiter(channel, lease)
        with self._lock:
            others = self._waiters.setdefault(channel, [])
            others.append(waiter)
            is_open, is_first = channel in self._open, len(others) == 1
        if is_first:
            self._listener.want(channel)
        if is_open:
            waiter.confirmed.set()
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Stop waiting."""
        with self._lock:
            others = self._waiters[waiter.channel]
            others.remove(waiter)
            if others:
                return
            del self._waiters[waiter.channel]
            self._open.discard(waiter.channel)
            self._listener.leave(waiter.channel)

    def attach(self, local: LocalCache) -> None:
        """Keep a layer in memory in step with the fleet."""
        with self._lock:
            known = local in self._locals
            self._locals.add(local)
            is_first = len(self._locals) == 1 and not known
            if keys.cache_drops() in self._open and not local.is_open:
                local.open()
        if is_first:
            self._listener.want(keys.cache_drops())

    def heard(self, channel: str, message: bytes) -> None:
        """Wake who waits on this channel, or drop from memory what the fleet dropped."""
        if channel == keys.cache_drops():
            for local in list(self._locals):
                local.drop(message.decode(errors="replace"))
            return
        with self._lock:
            waiters = list(self._waiters.get(channel, ()))
        for waiter in waiters:
            waiter.tell(message)

    def listening(self, channel: str) -> None:
        """Tell who waits on this channel that from now on nothing is missed."""
        with self._lock:
            waiters = list(self._waiters.get(channel, ()))
            if waiters or channel == keys.cache_drops():
                self._open.add(channel)
            for local in list(self._locals) if channel == keys.cache_drops() else ():
                local.open()
        for waiter in waiters:
            waiter.confirmed.set()

    def deaf(self) -> None:
        """Let everybody ask again, and empty the layers in memory: messages are being missed."""
        with self._lock:
            self._open.clear()
            waiters = [waiter for others in self._waiters.values() for waiter in others]
            for local in list(self._locals):
                local.close()
        for waiter in waiters:
            waiter.confirmed.set()
            waiter.news.set(_ASK_AGAIN)


_waits: Waits | None = None
_making = threading.Lock()


def waits() -> Waits:
    """Return this process's waits; a forked child gets its own."""
    global _waits
    if _waits is None:
        with _making:
            if _waits is None:
                _waits = Waits()
    return _waits


def _after_fork() -> None:
    global _waits, _making
    _waits, _making = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
