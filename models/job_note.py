"""What people write about a job."""

from __future__ import annotations

from sqlalchemy import BigInteger, Identity, Index
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt, Key, Line


class JobNote(Base):
    """One note. It stays when the job moves to history, and goes with it."""

    __tablename__ = "job_notes"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job_id: Mapped[Key]
    author: Mapped[Line]
    text: Mapped[Line]
    created_at: Mapped[CreatedAt]

    __table_args__ = (Index("job_notes_job_ix", "job_id", "id"), Index("job_notes_created_ix", "created_at"))
