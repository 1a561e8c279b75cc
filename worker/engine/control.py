"""Remote control whose revokes are durable: a job that waits is cancelled in Postgres, not in the memory of workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import psycopg
from celery.app.control import Control
from celery.exceptions import TaskRevokedError

from worker.db import statement
from worker.ledger import manage, results
from worker.ledger.settle import Guard
from worker.states import JobState


class LedgerControl(Control):  # type: ignore[misc]
    """Celery's remote control, with `revoke` that survives restarts."""

    def revoke(
        self, task_id: Any, destination: Any = None, terminate: bool = False, signal: str = "SIGTERM", **kwargs: Any
    ) -> Any:
        """Cancel jobs: those that wait at once; a running one is told (`self.cancelled`) and, with `terminate`, stopped.

        Workers are told only of what they alone know: running jobs to be stopped, and tasks without a row. They remember a
        revoked id for hours, and would refuse a job that is replayed under it.
        """
        ids = [task_id] if isinstance(task_id, str) else list(task_id)
        left = [job_id for job_id in ids if self.cancel(job_id) != "cancelled"]
        with statement() as conn:
            rows = {row.id: row.state for row in results.read(conn, left)}
        told = [job_id for job_id in left if job_id not in rows or (terminate and rows[job_id] == JobState.RUNNING)]
        if not told:
            return None
        return super().revoke(told, destination=destination, terminate=terminate, signal=signal, **kwargs)

    def cancel(
        self, job_id: str, also: Callable[[psycopg.Connection[Any]], object] | None = None
    ) -> Literal["cancelled", "asked to stop"] | None:
        """Cancel a job that waits, or ask a running one to stop, and return which; None when there is nothing to cancel.

        What `also` writes is part of the transaction that does either.
        """
        exc = TaskRevokedError("revoked")
        for _ in range(2):  # between the two looks a job may have come back to its queue
            if self.app.backend.end_job(job_id, Guard.waiting(), exc, JobState.CANCELLED, "cancelled", also=also):
                return "cancelled"
            with statement() as conn, conn.transaction():
                if manage.request_cancel(conn, job_id):
                    if also is not None:
                        also(conn)
                    return "asked to stop"
        return None
