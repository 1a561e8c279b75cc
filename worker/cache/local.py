"""A small layer of encoded values in the memory of the process, dropped when the fleet drops them."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from weakref import WeakSet

from cachetools import LRUCache

from worker.errors import CacheConfigError

#: Drops that are remembered for reads in flight; one that began before the oldest of them does not store.
_REMEMBERED = 4096

_all: WeakSet[LocalCache] = WeakSet()


class LocalCache:
    """Up to `size` encoded values, each for at most `ttl_s` seconds. Safe between threads.

    **Guarantee:** what it gives is at most `ttl_s` seconds behind what an invalidation by another process left, and mostly as
    little as a message takes; not at all behind one by this process. It gives nothing while messages may be missed.
    """

    def __init__(self, size: int = 10_000, ttl_s: float = 5.0) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise CacheConfigError(f"size={size!r}: give the number of values to keep, at least 1")
        if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not 0 < ttl_s < float("inf"):
            raise CacheConfigError(f"ttl_s={ttl_s!r}: give the seconds a value is kept, more than 0")
        self.ttl_s = float(ttl_s)
        self._size = size
        self.reset()
        _all.add(self)

    def reset(self) -> None:
        """Be empty and closed, as in a new process."""
        self._lock = threading.Lock()
        self._kept: LRUCache[str, tuple[float, int, int, bytes, tuple[str, ...]]] = LRUCache(self._size)
        self._dropped: OrderedDict[str, int] = OrderedDict()
        #: Drops so far, and those of them that may be forgotten.
        self._drops = self._floor = 0
        #: Whether no drop is being missed.
        self.is_open = False

    def get(self, key: str, tags: Iterable[str] = ()) -> tuple[int, bytes] | None:
        """Return the flags and payload of a key, if it is kept under all these tags at least."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or kept[0] <= time.monotonic() or (kept[4] and self._is_dropped(kept[4], kept[1])):
                return None
        if tags and not all("t" + tag in kept[4] for tag in tags):
            return None
        return kept[2], kept[3]

    def ticket(self) -> int:
        """Return what `put` asks for; take it before the value is read."""
        return self._drops if self.is_open else -1

    def put(self, key: str, tags: Iterable[str], value: tuple[int, bytes], seconds: float, ticket: int) -> None:
        """Keep a value, unless it was dropped since the ticket was taken."""
        names = tuple("t" + tag for tag in tags)
        until = time.monotonic() + min(seconds, self.ttl_s)
        with self._lock:
            if self.is_open and seconds > 0 and not self._is_dropped(("k" + key, *names), ticket):
                self._kept[key] = (until, ticket, *value, names)

    def _is_dropped(self, names: tuple[str, ...], since: int) -> bool:
        """Tell whether one of the names was dropped since a ticket, or may have been."""
        if since == self._drops:
            return False
        return since < self._floor or any(self._dropped.get(name, 0) > since for name in names)

    def drop(self, name: str) -> None:
        """Drop a key, given as `k<key>`, or whatever is under a tag, given as `t<tag>`, however much that is."""
        with self._lock:
            self._drops += 1
            self._dropped[name] = self._drops
            self._dropped.move_to_end(name)
            if len(self._dropped) > _REMEMBERED:
                self._floor = self._dropped.popitem(last=False)[1]
            if name[:1] == "k":
                self._kept.pop(name[1:], None)

    def open(self) -> None:
        """Begin to keep: from now on no drop is missed."""
        with self._lock:
            self._drops += 1
            self._floor = self._drops
            self.is_open = True

    def close(self) -> None:
        """Empty it and keep nothing: drops are being missed."""
        with self._lock:
            self.is_open = False
            self._kept.clear()

    @property
    def held(self) -> int:
        """The number of values it keeps, those past their time included."""
        return len(self._kept)


def drop_everywhere(keys: Iterable[str], tags: Iterable[str]) -> None:
    """Drop keys and tags from every layer of this process."""
    names = ["k" + key for key in keys] + ["t" + tag for tag in tags]
    for local in list(_all):
        for name in names:
            local.drop(name)


def _after_fork() -> None:
    for local in list(_all):
        local.reset()


os.register_at_fork(after_in_child=_after_fork)
