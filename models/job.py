"""The job: a row of `jobs` while it lives, moved to `job_history` by the statement that ends it."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, DateTime, Index, SmallInteger, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, declared_attr, mapped_column

from models.base import Base, Key, Line, Moment
from worker.states import ACTIVE_STATES, FINAL_STATES, JobState


def _one_of(states: tuple[JobState, ...]) -> str:
    return "state IN ({})".format(", ".join(f"'{state}'" for state in states))


class _JobColumns:
    """The columns that a job keeps after it ended."""

    id: Mapped[Key] = mapped_column(primary_key=True)
    task: Mapped[Line]
    queue: Mapped[Line]
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="5")
    state: Mapped[Line]
    #: The whole Celery message: headers, properties, body, content-type and content-encoding. The type is `json`, not
    #: `jsonb`: it is sent again exactly as it came, and `jsonb` refuses U+0000 and reorders keys.
    message: Mapped[dict[str, Any]] = mapped_column(JSON)
    args: Mapped[Line] = mapped_column(server_default="()")
    kwargs: Mapped[Line] = mapped_column(server_default="{}")
    revision: Mapped[int] = mapped_column(server_default="0")
    attempt: Mapped[int] = mapped_column(server_default="0")
    max_attempts: Mapped[int | None]
    crashes: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    caller: Mapped[Line | None]
    idempotency_key: Mapped[Line | None]
    parent_id: Mapped[Line | None]
    root_id: Mapped[Line | None]
    group_id: Mapped[Line | None]
    worker_id: Mapped[uuid.UUID | None]
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    error: Mapped[Line | None]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())
    available_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())
    expires_at: Mapped[Moment | None]
    started_at: Mapped[Moment | None]
    claimed_at: Mapped[Moment | None]
    #: The line it waits in: its limits and their keys, as JSON; null where nothing limits it.
    gate: Mapped[Key | None]
    #: Who is told of its end.
    callback_url: Mapped[Line | None]
    #: What its caller wants to find again on it. SQLAlchemy has taken the name `metadata` for itself.
    labels: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB)


class Job(_JobColumns, Base):
    """A job that is not finished."""

    __tablename__ = "jobs"

    claim_token: Mapped[uuid.UUID | None] = mapped_column(sort_order=1)
    delivery_tag: Mapped[Line | None] = mapped_column(sort_order=1)
    #: The life of the broker under which the job was sent; null while it is in Postgres alone. Of a scheduled job the mark of the
    #: flag that holds it back, which keeps it out of the indexes of what is due.
    dispatch_epoch: Mapped[Line | None] = mapped_column(sort_order=1)
    dispatched_at: Mapped[Moment | None] = mapped_column(sort_order=1)
    unique_key: Mapped[Line | None] = mapped_column(sort_order=1)
    unique_until: Mapped[Moment | None] = mapped_column(sort_order=1)
    cancel_requested: Mapped[bool] = mapped_column(server_default=text("false"), sort_order=1)

    __table_args__ = (
        CheckConstraint(_one_of(ACTIVE_STATES), name="state"),
        CheckConstraint("priority BETWEEN 0 AND 9", name="priority"),
        CheckConstraint("state <> 'running' OR (claim_token IS NOT NULL AND claimed_at IS NOT NULL)", name="claim"),
        # What the relay sends next, in order: of what nothing limits, and of each line.
        Index("jobs_due_ix", "queue", "priority", "available_at", "id",
              postgresql_where=text("gate IS NULL AND dispatch_epoch IS NULL AND state IN ('scheduled', 'queued')")),
        Index("jobs_gated_ix", "queue", "gate", "priority", "available_at", "id",
              postgresql_where=text("gate IS NOT NULL AND dispatch_epoch IS NULL AND state IN ('scheduled', 'queued')")),
        # What was sent and not yet claimed, oldest first, for the audit.
        Index("jobs_sent_ix", "dispatched_at", postgresql_where=text("dispatch_epoch IS NOT NULL AND state = 'queued'")),
        Index("jobs_running_ix", "worker_id", postgresql_where=text("state = 'running'")),
        Index("jobs_expires_ix", "expires_at", postgresql_where=text("expires_at IS NOT NULL AND state <> 'running'")),
        # What a flag holds back, by its mark.
        Index("jobs_parked_ix", "dispatch_epoch",
              postgresql_where=text("dispatch_epoch IS NOT NULL AND state = 'scheduled'")),
        # A running job that was asked to stop, and came back to its queue instead.
        Index("jobs_cancelled_ix", "id", postgresql_where=text("cancel_requested AND state <> 'running'")),
        # The deliveries of one job's callbacks, which go in order.
        Index("jobs_deliveries_ix", "parent_id", postgresql_where=text("task = 'webhook.deliver'")),
        # The parts of a chain, group or chord; a plain job is in no such index.
        Index("jobs_family_ix", "root_id", postgresql_where=text("root_id <> id")),
        Index("jobs_unique_ix", "unique_key", unique=True, postgresql_where=text("unique_key IS NOT NULL")),
        # The table turns over all the time: vacuum early, and leave room in a page for the claimed copy of a row.
        {"postgresql_with": {"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.02, "autovacuum_vacuum_cost_delay": 0}},
    )


class JobHistory(_JobColumns, Base):
    """A job that ended, partitioned by the day it did."""

    __tablename__ = "job_history"

    finished_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), primary_key=True, server_default=func.clock_timestamp(), sort_order=1
    )
    result: Mapped[Any | None] = mapped_column(JSON, sort_order=1)
    children: Mapped[Any | None] = mapped_column(JSON, sort_order=1)
    traceback: Mapped[Line | None] = mapped_column(sort_order=1)

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[Any, ...]:
        return (
            CheckConstraint(_one_of(FINAL_STATES), name="state"),
            # What people search by, the latest first; each is appended to as jobs end, and costs them that.
            Index("job_history_finished_ix", "finished_at", "id"),
            Index("job_history_task_ix", "task", "finished_at", "id"),
            Index("job_history_queue_ix", "queue", "finished_at", "id"),
            Index("job_history_caller_ix", "caller", "finished_at", "id", postgresql_where=text("caller IS NOT NULL")),
            Index("job_history_state_ix", "state", "finished_at", "id", postgresql_where=text("state <> 'succeeded'")),
            Index("job_history_family_ix", "root_id", postgresql_where=text("root_id <> id")),
            {"postgresql_partition_by": "RANGE (finished_at)"},
        )
