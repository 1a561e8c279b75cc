"""What the demo's callers share: the book of what they were told, and a pace at which they go on calling."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from worker.cli.demo.figures import Promise
from worker.cli.demo.plan import Entrance

#: How far callers run ahead of the work, as a part of all jobs: enough for a backlog that a flush can take, little enough that
#: they are still calling when things break.
_AHEAD = 0.15
#: The least of it, in jobs: workers must not wait for the next look of the demo.
_AHEAD_JOBS = 150


class Book:
    """The ids that callers were told, and what they then rolled back."""

    def __init__(self) -> None:
        self._promises: dict[str, Promise] = {}
        self._rolled_back: set[str] = set()
        self._callbacks: set[str] = set()
        self._lock = threading.Lock()
        #: Foreign messages that Redis lost before they were adopted, and that their client sent again.
        self.sent_again = 0

    def told(self, entrance: Entrance, ids: Iterable[str], *, later: bool = False) -> None:
        """Note that a caller was told these ids: from now on they are promises."""
        with self._lock:
            self._promises.update((job_id, Promise(entrance, later)) for job_id in ids)

    def rolled_back(self, ids: Iterable[str]) -> None:
        """Note that these ids were told inside a transaction that did not commit."""
        with self._lock:
            self._rolled_back.update(ids)

    def called_back(self, ids: Iterable[str]) -> None:
        """Note that the ends of these are to be told to the counting server."""
        with self._lock:
            self._callbacks.update(ids)

    def callbacks(self) -> frozenset[str]:
        """Return the jobs whose ends are to be told, as of now."""
        with self._lock:
            return frozenset(self._callbacks)

    def read(self) -> tuple[dict[str, Promise], frozenset[str]]:
        """Return the promises and what was rolled back, as of now."""
        with self._lock:
            return dict(self._promises), frozenset(self._rolled_back)


class Pace:
    """Holds callers back until the work has come near enough to what they call next."""

    def __init__(self, jobs: int) -> None:
        self._jobs, self._done, self._stopped = jobs, 0, False
        self._ahead = max(_AHEAD, _AHEAD_JOBS / jobs)
        self._changed = threading.Condition()

    @property
    def stopped(self) -> bool:
        return self._stopped

    def advance(self, done: int) -> None:
        """Tell how many jobs are done."""
        with self._changed:
            self._done = done
            self._changed.notify_all()

    def stop(self) -> None:
        """Let nobody call any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def wait(self, part: float) -> bool:
        """Wait for the turn of what comes after this part of all jobs; tell whether it has come, not the stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._done / self._jobs + self._ahead >= part)
            return not self._stopped
