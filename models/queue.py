"""What operators set for a queue; a queue without a row runs on the defaults."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt, Key


class Queue(Base):
    """The settings of one queue."""

    __tablename__ = "queues"

    name: Mapped[Key] = mapped_column(primary_key=True)
    paused: Mapped[bool] = mapped_column(server_default=text("false"))
    #: Jobs that may lie in Redis at a time; null for the setting.
    window: Mapped[int | None]
    updated_at: Mapped[CreatedAt]

    __table_args__ = (CheckConstraint('"window" > 0', name="window"),)
