"""Waiting for events: a word in Redis when there are new ones, and a look from time to time where that does not come."""

from __future__ import annotations

import threading

from worker.store import coordination, keys
from worker.store.listening import Listener

#: The longest that a waiter goes without a look of its own, in seconds.
LOOK_S = 2.0
#: The same while the channel is not heard.
LOOK_DEAF_S = 0.25


class News:
    """Tells the threads of a process when it is time to look for events again.

        news = News()
        seen = 0
        while True:
            seen = news.wait(seen)
            for event in events_after(conn, job_id=job_id, after_id=last):
                ...

    **Guarantee:** `wait` returns within `LOOK_S` of a new event, whatever becomes of Redis; usually in a hundredth of a second.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._hears = False
        self._listener = Listener(coordination, self)
        self._listener.want(keys.news())

    def wait(self, seen: int, timeout_s: float = LOOK_S) -> int:
        """Return the number of the newest word when it is another than the one seen last, or when it is time to look anyway."""
        with self._changed:
            if self._count == seen:
                self._changed.wait(min(timeout_s, LOOK_S if self._hears else LOOK_DEAF_S))
            return self._count

    def close(self) -> None:
        """Stop hearing."""
        self._listener.leave(keys.news())

    # ---- what the listener tells

    def heard(self, channel: str, message: bytes) -> None:
        """Wake who waits."""
        self._tell(hears=True)

    def listening(self, channel: str) -> None:
        """Wake who waits: something may have come before this."""
        self._tell(hears=True)

    def deaf(self) -> None:
        """Let who waits look more often."""
        self._tell(hears=False)

    def _tell(self, *, hears: bool) -> None:
        with self._changed:
            self._hears = hears
            self._count += 1
            self._changed.notify_all()
