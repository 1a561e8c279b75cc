"""The pool of a worker's processes: Celery's, with a message that waits in the pipe of a child for the end of a short job."""

from __future__ import annotations

import time
from typing import Any

from celery.concurrency import asynpool, prefork

from worker.engine import ahead


def _request_of(job: Any) -> Any:
    """Return the request that a job of the pool was made for; None for another call."""
    return getattr(job._accept_callback, "__self__", None)


def _until(job: Any) -> float | None:
    """Return the moment until which a message that was taken ahead may wait; None for any other."""
    found: float | None = getattr(_request_of(job), "until", None)
    return found


class _Pool(asynpool.AsynPool):  # type: ignore[misc]
    """Celery's pool, in which a child may have one job that waits."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._busy_workers = ahead.watch(self._all_inqueues, self._next_may_wait)
        #: Jobs that were taken back, and that their children are going to drop.
        self._taken_back: set[int] = set()

    def _next_may_wait(self) -> bool:
        return bool(self.outbound_buffer) and _until(self.outbound_buffer[0]) is not None

    def register_with_event_loop(self, hub: Any) -> None:
        """Look after messages that wait, too."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(ahead.WAIT_S, self._take_back)

    def on_job_ready(self, job: int, i: int, obj: Any, inqW_fd: int) -> None:
        """Note that a child has come to the end of a job."""
        if job in self._taken_back:
            self._taken_back.discard(job)
        else:
            self._busy_workers.done(inqW_fd)

    def flush(self) -> None:
        """Forget what no child has begun with, for the connection to the broker has ended; but look after what waits."""
        waiting = [job for job in self._cache.values() if not job._accepted and _until(job) is not None]
        super().flush()
        for job in waiting:
            if job._write_to is None:
                _request_of(job).give_back()
            else:
                self._cache[job._job] = job
                self._busy_workers.add(job._write_to.inqW_fd)

    def _take_back(self) -> None:
        """Give those messages back that have waited for a child too long."""
        now = time.monotonic()
        for job in list(self._cache.values()):
            until = None if job._accepted else _until(job)
            if until is None or until > now:
                continue
            child = job._write_to
            if job in self.outbound_buffer:
                self.outbound_buffer.remove(job)
            elif child is None or child.outq._reader.poll(0):
                continue  # What it tells may be that it has begun.
            else:
                self._taken_back.add(job._job)
                self._busy_workers.taken_back(child.inqW_fd)
            job.discard()
            _request_of(job).give_back()


class TaskPool(prefork.TaskPool):  # type: ignore[misc]
    """Celery's prefork pool over this one."""

    Pool = _Pool
