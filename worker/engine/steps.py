"""What Holdfast adds to the parts of a Celery worker."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

#: Seconds between two looks for dead processes of the pool.
_LOOK_S = 0.5


class PoolWatch(bootsteps.StartStopStep):  # type: ignore[misc]
    """Sees to it that the death of a pool's process is noticed at once.

    Celery hears of a death by a pipe, which closes a moment before the process can be waited for. When it is too early, it
    looks again only after five seconds.
    """

    requires = ("celery.worker.components:Pool",)

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """Look more often."""
        hub.call_repeatedly(_LOOK_S, worker.pool.maintain_pool)
