"""The states of a job, and what it takes along into history: for statements as for tables, and without what tables need."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """The states of a job."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DISCARDED = "discarded"


ACTIVE_STATES = (JobState.SCHEDULED, JobState.QUEUED, JobState.RUNNING)
FINAL_STATES = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED, JobState.DISCARDED)

#: The columns a job takes along into history, in one order for every statement that moves one; `state` and `error` are set anew.
HISTORY_COLUMNS = (
    "id", "task", "queue", "priority", "message", "args", "kwargs", "revision", "attempt", "max_attempts", "crashes", "caller",
    "idempotency_key", "parent_id", "root_id", "group_id", "worker_id", "progress", "created_at", "available_at", "expires_at",
    "started_at", "claimed_at", "gate", "callback_url", "metadata",
)  # fmt: skip
