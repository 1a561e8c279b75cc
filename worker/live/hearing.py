"""One connection of a process on which all that is live in it hears its channels."""

from __future__ import annotations

import os
import threading
from collections import defaultdict

from worker.store import coordination
from worker.store.listening import Ear, Listener


class Hub:
    """Tells each ear what is heard on its channel, as `store.listening` describes; begins with the first."""

    def __init__(self) -> None:
        self._ears: dict[str, list[Ear]] = defaultdict(list)
        self._lock = threading.Lock()
        self._listener = Listener(coordination, self)

    def join(self, channel: str, ear: Ear) -> None:
        """Let this one hear a channel; it is told when it does."""
        with self._lock:
            self._ears[channel].append(ear)
        self._listener.want(channel)

    def leave(self, channel: str, ear: Ear) -> None:
        """Let it hear the channel no more."""
        with self._lock:
            self._ears[channel].remove(ear)
            if not self._ears[channel]:
                del self._ears[channel]
        self._listener.leave(channel)

    def heard(self, channel: str, message: bytes) -> None:
        """Pass a message on."""
        for ear in self._of(channel):
            ear.heard(channel, message)

    def listening(self, channel: str) -> None:
        """Pass on that from now on nothing is missed on a channel; those who heard it already are told again."""
        for ear in self._of(channel):
            ear.listening(channel)

    def deaf(self) -> None:
        """Pass on that messages are missed."""
        with self._lock:
            ears = [ear for of in self._ears.values() for ear in of]
        for ear in ears:
            ear.deaf()

    def _of(self, channel: str) -> list[Ear]:
        with self._lock:
            return list(self._ears.get(channel, ()))


_hubs: dict[int, Hub] = {}


def hub() -> Hub:
    """Return this process's hub; a forked child gets its own."""
    pid = os.getpid()
    if pid not in _hubs:
        _hubs.clear()
        _hubs[pid] = Hub()
    return _hubs[pid]
