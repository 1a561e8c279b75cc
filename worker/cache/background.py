"""Refreshes that callers leave behind them: at most one of a key, and a few in all, in one process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

#: Refreshes that one process runs at a time; the next read of a due value tries again.
MOST = 8
#: Keys that are remembered as busy; with more, the oldest knowledge is dropped, which costs a round trip.
_REMEMBERED = 4096


class Refreshes:
    """Which keys this process refreshes now, and which are not worth asking for, because another process does. Thread-safe."""

    def __init__(self) -> None:
        self._running: set[str] = set()
        self._busy: dict[str, float] = {}
        self._lock = threading.Lock()

    def try_begin(self, key: str) -> bool:
        """Tell whether the caller is to refresh this key; `end` must follow."""
        with self._lock:
            if key in self._running or len(self._running) >= MOST or self._busy.get(key, 0.0) > time.monotonic():
                return False
            self._running.add(key)
            return True

    def end(self, key: str, busy_s: float = 0.0) -> None:
        """Let go of a key, which need not be asked for again so soon."""
        with self._lock:
            self._running.discard(key)
            self._busy.pop(key, None)
            if busy_s > 0:
                if len(self._busy) >= _REMEMBERED:
                    self._busy.clear()
                self._busy[key] = time.monotonic() + busy_s


refreshes = Refreshes()


def try_in_thread(run: Callable[[], None]) -> bool:
    """Run in a thread that does not hold up the end of the process; False when there can be none: no concern of callers."""
    try:
        threading.Thread(target=run, name="holdfast-refresh", daemon=True).start()
    except RuntimeError:
        return False
    return True


def _after_fork() -> None:
    global refreshes
    refreshes = Refreshes()


os.register_at_fork(after_in_child=_after_fork)
