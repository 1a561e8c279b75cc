"""What is to be forgotten by the cache once the transaction that changed it has committed."""

from __future__ import annotations

from sqlalchemy import BigInteger, Identity, Text, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt


class CacheOutbox(Base):
    """An invalidation that is owed: written with the change, gone when the cache has carried it out."""

    __tablename__ = "cache_outbox"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    keys: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    created_at: Mapped[CreatedAt]

    # Its rows live for milliseconds: what they leave behind is swept up early, or the relay would read through it each round.
    __table_args__ = {"postgresql_with": {"autovacuum_vacuum_scale_factor": 0.0, "autovacuum_vacuum_threshold": 1000}}
