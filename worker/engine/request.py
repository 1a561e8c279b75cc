"""A delivered message as a worker's main process sees it."""

from __future__ import annotations

from typing import Any

from celery.exceptions import InvalidTaskError
from celery.worker.request import Request
from celery.worker.state import task_ready

from worker.engine.ahead import Overdue
from worker.ledger.message import HEADER, is_timelimit


class LedgerRequest(Request):  # type: ignore[misc]
    """A request of which its job's row says whether it was revoked, not the memory of this worker.

    A worker remembers a revoked id for hours, and would refuse the job when it is replayed. One that is cancelled by its row is
    not claimed anyway.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The pool would stumble over them, and take its worker along.
        if not is_timelimit(self.time_limits):
            raise InvalidTaskError("its timelimit is not [hard, soft] in seconds")
        delivery = self.request_dict.get(HEADER)
        #: Until when its message may wait for a child, where it was taken ahead; a moment of the machine's monotonic clock.
        self.until: float | None = delivery.get("u") if isinstance(delivery, dict) else None

    def give_back(self) -> None:
        """Give its message back to the queue: another worker may have a child that is free."""
        task_ready(self)
        self.message.channel.give_back(self.message)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Give back what its child had no time for; leave the rest to Celery."""
        if isinstance(exc_info.exception, Overdue):
            return self.give_back()
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def revoked(self) -> bool:
        """Tell whether the task must not run, by what this worker knows of this very delivery or, without a row, of its id."""
        delivery = self.request_dict.get(HEADER)
        if isinstance(delivery, dict) and "r" in delivery:
            return bool(self._already_revoked)
        return bool(super().revoked())
