"""What spares callers a server that failed, and says in our words what a driver's error means."""

from __future__ import annotations

import threading
import time

import redis

from worker.errors import HoldfastError, StoreFull, StoreRefused, StoreUnavailable

#: Seconds for which a server that failed is not tried again: long enough to spare a busy worker most timeouts of a hung server,
#: short enough that its return is noticed at once.
BREAK_S = 1.0

#: What the driver raises when the server, or the way to it, does not work; a read-only one has just lost a failover.
_GONE = (redis.exceptions.ReadOnlyError, redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)


class Breaker:
    """Refuses callers for a second after a failure; then one of them tries, and the others stay refused until it was answered.

    Safe between threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        #: Whether the server failed and has not answered since.
        self.broken = False
        self._until = 0.0
        self._probe = threading.Lock()

    @property
    def away(self) -> bool:
        """Tell whether the server failed a moment ago and is not tried for now."""
        return self.broken and (time.monotonic() < self._until or self._probe.locked())

    def admit(self) -> bool:
        """Let a caller pass and tell whether it is the one that tries. Raises `StoreUnavailable` when it may not."""
        if not self.broken:
            return False
        if time.monotonic() < self._until or not self._probe.acquire(blocking=False):
            raise StoreUnavailable(f"Redis ({self._name}) did not answer a moment ago")
        return True

    def passed(self, probe: bool, exc: BaseException | None) -> HoldfastError | None:
        """Note how a caller fared, and return its error in our words; None for one that is not the server's."""
        found = self._translated(exc)
        # A refusal is an answer. Whoever raised an error of its own may not have asked at all: the next one tries again.
        gone = found is not None and not isinstance(found, StoreRefused)
        if gone:
            self._until = time.monotonic() + BREAK_S
            self.broken = True
        if probe:
            self.broken = gone or (exc is not None and found is None)
            self._probe.release()
        return found

    def _translated(self, exc: BaseException | None) -> HoldfastError | None:
        if exc is None:
            return None
        if isinstance(exc, redis.exceptions.OutOfMemoryError):
            return StoreFull(f"Redis ({self._name}) is at its maxmemory and refuses writes")
        if isinstance(exc, _GONE):
            return StoreUnavailable(f"Redis ({self._name}) did not answer: {exc}")
        if isinstance(exc, redis.exceptions.ResponseError):
            return StoreRefused(f"Redis ({self._name}) refused a command: {exc}")
        return None
