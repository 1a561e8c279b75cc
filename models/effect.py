"""The effects a job has recorded, so that each takes place once however often the job runs."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import DateTime, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Key


class Effect(Base):
    """A named step of a job that was committed."""

    __tablename__ = "effects"

    job_id: Mapped[Key] = mapped_column(primary_key=True)
    name: Mapped[Key] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())

    __table_args__ = (Index("effects_created_ix", "created_at"),)
