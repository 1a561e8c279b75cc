"""Messages that are taken ahead: a child whose jobs are short has its next one at hand, and none waits behind a long one.

A worker takes a message when a child is free for it. To a child whose jobs are short it gives one more, which spares the child
the way of a message through the main process. Until when such a message may wait is written on it: after that moment the child
does not run it, and the main process gives it back to its queue as soon as it sees that the child has not begun with it. As a
child tells that it begins before it looks at the clock, one of the two has the message, never both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from celery.exceptions import Ignore

#: Seconds within which a child must have ended its last job to be given the next one ahead.
SHORT_S = 0.02
#: Seconds for which a message that was taken ahead may wait for its child.
WAIT_S = 0.05


class Overdue(Ignore):  # type: ignore[misc]
    """A message waited for longer than it may: it is to be given back."""


class Busy:
    """The children that are given no job now, as Celery's pool asks of a set; a child is told by the number of its pipe.

    One that runs a job is busy, unless its last job was short, no other child is free, and the next message may wait.
    """

    def __init__(self, children: set[int], next_may_wait: Callable[[], bool]) -> None:
        self._children, self._next_may_wait = children, next_may_wait
        #: How many jobs were given to those that have one, and since when they are at the first.
        self._jobs: dict[int, int] = {}
        self._since: dict[int, float] = {}
        self._short: set[int] = set()

    def add(self, child: int) -> None:
        """Note that the child was given a job."""
        if child not in self._jobs:
            self._since[child] = time.monotonic()
        self._jobs[child] = self._jobs.get(child, 0) + 1

    def done(self, child: int) -> None:
        """Note that the child has ended a job."""
        now = time.monotonic()
        if now - self._since.get(child, now) < SHORT_S:
            self._short.add(child)
        else:
            self._short.discard(child)
        self._since[child] = now
        self._has_one_less(child)

    def taken_back(self, child: int) -> None:
        """Note that the child took too long to be given a message ahead."""
        self._short.discard(child)
        self._has_one_less(child)

    def _has_one_less(self, child: int) -> None:
        left = self._jobs.pop(child, 0) - 1
        if left > 0:
            self._jobs[child] = left

    def discard(self, child: int) -> None:
        """Forget the child: it is gone."""
        self._jobs.pop(child, None)
        self._since.pop(child, None)
        self._short.discard(child)

    def intersection_update(self, running: Iterable[int]) -> None:
        """Note that of all children only these have a job, and one each."""
        self._jobs = {child: 1 for child in running if child in self._jobs}

    def ahead(self) -> int:
        """Return how many messages may be taken ahead at present: none while a child is free."""
        return len(self._short) if self._none_free() else 0

    def _none_free(self) -> bool:
        return len(self._jobs) == len(self._children)

    def __contains__(self, child: int) -> bool:
        jobs = self._jobs.get(child, 0)
        return jobs > 1 or (jobs == 1 and not (child in self._short and self._none_free() and self._next_may_wait()))

    def __len__(self) -> int:
        return sum(child in self for child in self._jobs)


_busy = Busy(set(), lambda: False)


def watch(children: set[int], next_may_wait: Callable[[], bool]) -> Busy:
    """Return which children of this process's pool are busy, as its transport will ask, too."""
    global _busy
    _busy = Busy(children, next_may_wait)
    return _busy


def wanted() -> int:
    """Return how many messages this worker may take ahead at present; without a pool of processes none."""
    return _busy.ahead()
