"""Who may use the HTTP gateway, and for what."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import DateTime, Index, LargeBinary, Text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt, Key, Line


class Caller(Base):
    """A service with a key of its own; the key itself is nowhere, only its SHA-256."""

    __tablename__ = "callers"

    name: Mapped[Key] = mapped_column(primary_key=True)
    #: The first part of the key, by which people recognise it and the row is found.
    prefix: Mapped[Key]
    key_hash: Mapped[bytes] = mapped_column(LargeBinary)
    #: The key before the last rotation, which counts until then.
    old_prefix: Mapped[Key | None]
    old_key_hash: Mapped[bytes | None] = mapped_column(LargeBinary)
    old_key_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    #: Some of enqueue, read and admin.
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    #: Patterns of the tasks, and names of the queues, it may use; null for all.
    tasks: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    queues: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    #: As `100/second burst 20`; null for no limit.
    rate: Mapped[Line | None]
    created_at: Mapped[CreatedAt]
    rotated_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    revoked_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))

    __table_args__ = (
        Index("callers_prefix_ix", "prefix", unique=True),
        Index("callers_old_prefix_ix", "old_prefix", unique=True),
    )
