"""What people did to the system."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Identity, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt, Line


class AuditEntry(Base):
    """One thing that one person did, written in the transaction in which it was done."""

    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    actor: Mapped[Line]
    #: As `queue.pause`: what it was done to, and what was done.
    action: Mapped[Line]
    target: Mapped[Line]
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    at: Mapped[CreatedAt]

    __table_args__ = (
        Index("audit_log_at_ix", "at"),
        Index("audit_log_actor_ix", "actor", "id"),
        Index("audit_log_action_ix", "action", "id"),
        Index("audit_log_target_ix", "target", "id"),
    )
