"""A delivered message as a worker's main process sees it."""

from __future__ import annotations

from typing import Any

from celery.exceptions import InvalidTaskError
from celery.worker.request import Request

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

    def revoked(self) -> bool:
        """Tell whether the task must not run, by what this worker knows of this very delivery or, without a row, of its id."""
        delivery = self.request_dict.get(HEADER)
        if isinstance(delivery, dict) and "r" in delivery:
            return bool(self._already_revoked)
        return bool(super().revoked())
