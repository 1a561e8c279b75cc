"""The workers and when each last gave a sign of life, by the clock of Postgres."""

from __future__ import annotations

import uuid

from sqlalchemy import Double, Index, Integer, Text, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt, Line, Moment


class WorkerNode(Base):
    """One worker process with its pool."""

    __tablename__ = "worker_nodes"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[Line]
    host: Mapped[Line]
    pid: Mapped[int] = mapped_column(Integer)
    queues: Mapped[list[str]] = mapped_column(ARRAY(Text))
    started_at: Mapped[CreatedAt]
    beat_at: Mapped[CreatedAt]
    #: Seconds by which the clock of its host was ahead of that of Postgres at its last sign of life, but for the way there.
    ahead_s: Mapped[float | None] = mapped_column(Double)
    #: When it said good-bye or was declared dead.
    left_at: Mapped[Moment | None]

    __table_args__ = (Index("worker_nodes_beat_ix", "beat_at", postgresql_where=text("left_at IS NULL")),)
