"""What happened to jobs: a row for each change of a job's state, written in the transaction of the change."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Identity, Index, text
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from models.base import Base, CreatedAt, Key, Line


class TransactionId(UserDefinedType[int]):
    """A transaction's id as Postgres counts them for ever, in 64 bits."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the type's name."""
        return "XID8"


class JobEvent(Base):
    """A change of a job's state. The ids of one job's events rise in the order of its changes; those of two jobs may not."""

    __tablename__ = "job_events"

    #: The transaction that wrote it: by it, and not by the id, a reader knows what it has seen and what committed late.
    xid: Mapped[int] = mapped_column(TransactionId, primary_key=True, server_default=text("pg_current_xact_id()"))
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job_id: Mapped[Key]
    task: Mapped[Line]
    queue: Mapped[Line]
    caller: Mapped[Line | None]
    #: The caller's own name for the job, by which one who knows no job id knows it.
    key: Mapped[Line | None]
    state: Mapped[Line]
    attempt: Mapped[int]
    detail: Mapped[Line | None]
    at: Mapped[CreatedAt]

    __table_args__ = (
        Index("job_events_job_ix", "job_id", "id"),
        # Where a time begins in a table that is written in its order: next to nothing to keep up.
        Index("job_events_at_ix", "at", postgresql_using="brin"),
    )


class EventReader(Base):
    """How far one reader of all events has come."""

    __tablename__ = "event_readers"

    name: Mapped[Key] = mapped_column(primary_key=True)
    position: Mapped[Line]
    updated_at: Mapped[CreatedAt]
