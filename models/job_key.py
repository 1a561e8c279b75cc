"""The idempotency keys of callers, kept apart from the jobs because a partitioned table cannot hold them unique."""

from __future__ import annotations

from sqlalchemy import Index, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt, Key, Moment


class JobKey(Base):
    """A key a caller gave, the payload it stood for and the job it became."""

    __tablename__ = "job_keys"

    caller: Mapped[Key] = mapped_column(primary_key=True)
    key: Mapped[Key] = mapped_column(primary_key=True)
    payload_hash: Mapped[bytes] = mapped_column(LargeBinary)
    job_id: Mapped[Key]
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Moment]

    __table_args__ = (Index("job_keys_expires_ix", "expires_at"),)
