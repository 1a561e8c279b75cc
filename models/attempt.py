"""The attempts of a job that did not end it; the last one is told by the job's own row."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import DateTime, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Key, Line, Moment


class Attempt(Base):
    """One run that ended in a retry, a hand-back or the death of its worker."""

    __tablename__ = "attempts"

    job_id: Mapped[Key] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker_id: Mapped[uuid.UUID | None]
    started_at: Mapped[Moment | None]
    ended_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())
    #: retry, handed back, crashed or rejected
    outcome: Mapped[Line]
    error: Mapped[Line | None]
    traceback: Mapped[Line | None]

    __table_args__ = (Index("attempts_ended_ix", "ended_at"),)
