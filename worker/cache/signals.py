"""Things that happen once and are awaited by a thread or by a task, and the few that callers of a process queue for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Signal:
    """Something that happens once, with a value. Safe between threads."""

    __slots__ = ("_lock", "_then", "done", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self._then: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def set(self, value: Any = None) -> None:
        """Let it happen; a second time changes nothing."""
        with self._lock:
            if self.done:
                return
            self.done, self.value = True, value
            then, self._then = self._then, []
        for callback in then:
            callback()

    def then(self, callback: Callable[[], None]) -> None:
        """Call back when it happens, in the thread that lets it; at once when it has."""
        with self._lock:
            if not self.done:
                self._then.append(callback)
                return
        callback()

    def wait(self, seconds: float) -> bool:
        """Block this thread until it happened, at most so long; tell whether it did."""
        if self.done:
            return True
        event = threading.Event()
        self.then(event.set)
        return event.wait(max(0.0, seconds))


class Slots:
    """So many places, given out in the order of asking."""

    def __init__(self, number: int) -> None:
        self._free = number
        self._queue: deque[Signal] = deque()
        self._lock = threading.Lock()

    def take(self) -> Signal:
        """Return what happens when the place is the caller's. It must be given back, also when the caller did not wait for it."""
        signal = Signal()
        with self._lock:
            if self._free:
                self._free -= 1
                signal.set()
            else:
                self._queue.append(signal)
        return signal

    def give(self, signal: Signal) -> None:
        """Give a place back, or leave the queue for one."""
        with self._lock:
            if not signal.done:
                self._queue.remove(signal)
                return
            following = self._queue.popleft() if self._queue else None
            if following is None:
                self._free += 1
                return
            following.set()


class Flights:
    """Loads that callers of one process share while Redis cannot tell them who loads.

    A caller joins a load only before it has begun, so it never gets what was read before it asked; of one key, one load runs
    and one is next.
    """

    def __init__(self) -> None:
        self._next: dict[str, Signal] = {}
        self._running: dict[str, Signal] = {}
        self._lock = threading.Lock()

    def board(self, key: str) -> tuple[Signal, bool, Signal | None]:
        """Return the next load of the key, whether the caller is to run it, and the one to await before that."""
        with self._lock:
            flight = self._next.get(key)
            if flight is not None:
                return flight, False, None
            flight = self._next[key] = Signal()
            return flight, True, self._running.get(key)

    def begin(self, key: str, flight: Signal) -> None:
        """Close the doors: who asks from now on waits for the load after this one."""
        with self._lock:
            self._leave(self._next, key, flight)
            self._running[key] = flight

    def land(self, key: str, flight: Signal, value: Any) -> None:
        """Hand the outcome to all who are on board."""
        with self._lock:
            self._leave(self._next, key, flight)
            self._leave(self._running, key, flight)
        flight.set(value)

    @staticmethod
    def _leave(where: dict[str, Signal], key: str, flight: Signal) -> None:
        if where.get(key) is flight:
            del where[key]
