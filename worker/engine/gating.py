"""What a limited job needs before it is claimed: the slots it was let through with, or its place in line."""

from __future__ import annotations

from worker.db import statement
from worker.errors import LedgerUnavailable
from worker.ledger import gate, lines
from worker.limits import Slot, try_acquire_all
from worker.telemetry import OUTAGES


def admit(job_id: str, revision: int, line: str | None) -> tuple[bool, Slot | None]:
    """Tell whether a delivery may run, and the slots it holds, if any; one that may not waits in its line, without an attempt."""
    try:
        if line is None:
            return not _line_up(job_id), None
        return _slots(job_id, revision, line)
    except LedgerUnavailable:
        # The row stays queued; the audit sends it again once Postgres is back.
        OUTAGES.labels("ledger", "job left queued").inc()
        return False, None


def _line_up(job_id: str) -> bool:
    """Put a job into its line whose sender did not know the limits of its task; tell whether it stands in one."""
    with statement() as conn:
        return lines.line_up(conn, job_id)


def _slots(job_id: str, revision: int, line: str) -> tuple[bool, Slot | None]:
    """Make sure of the slots the job was let through with, or put it back into its line."""
    charges = [charge for charge in lines.charges_of(line) if charge.slot]
    if not charges:
        return True, None
    if try_acquire_all(charges, holder=job_id):
        return True, Slot(charges, job_id)
    with statement() as conn:
        gate.put_back(conn, job_id, revision)
    return False, None
