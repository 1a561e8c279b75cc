"""Remote control whose revokes are durable: a job that waits is cancelled in Postgres, not in the memory of workers."""

from __future__ import annotations

from typing import Any

from celery.app.control import Control
from celery.exceptions import TaskRevokedError

from models import JobState
from worker.db import statement
from worker.ledger import manage
from worker.ledger.settle import Guard


class LedgerControl(Control):  # type: ignore[misc]
    """Celery's remote control, with `revoke` that survives restarts."""

    def revoke(
        self, task_id: Any, destination: Any = None, terminate: bool = False, signal: str = "SIGTERM", **kwargs: Any
    ) -> Any:
        """Cancel jobs: those that wait at once; a running one is told (`self.cancelled`) and, with `terminate`, stopped."""
        ids = [task_id] if isinstance(task_id, str) else list(task_id)
        running = [job_id for job_id in ids if not self.cancel(job_id)]
        if not running and terminate is False:
            return None
        return super().revoke(running or ids, destination=destination, terminate=terminate, signal=signal, **kwargs)

    def cancel(self, job_id: str) -> bool:
        """Cancel a job that waits, or ask a running one to stop; tell whether it was cancelled here and now."""
        if self.app.backend.end_job(job_id, Guard.waiting(), TaskRevokedError("revoked"), JobState.CANCELLED, "cancelled"):
            return True
        with statement() as conn:
            manage.request_cancel(conn, job_id)
        return False
