"""Chords counted in rows: the size of each and the parts that have returned."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Index
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt, Key, Line, Moment


class Chord(Base):
    """A chord: complete when as many parts as `size` have returned."""

    __tablename__ = "chords"

    group_id: Mapped[Key] = mapped_column(primary_key=True)
    size: Mapped[int | None]
    returned: Mapped[int] = mapped_column(server_default="0")
    #: The nested shape of the header's results, as Celery writes it; null when flat.
    header: Mapped[Any | None] = mapped_column(JSON)
    #: The body's signature, known from the first part that returns.
    body: Mapped[Any | None] = mapped_column(JSON)
    created_at: Mapped[CreatedAt]
    done_at: Mapped[Moment | None]

    __table_args__ = (Index("chords_created_ix", "created_at"),)


class ChordPart(Base):
    """One header task of a chord that has returned."""

    __tablename__ = "chord_parts"

    group_id: Mapped[Key] = mapped_column(primary_key=True)
    task_id: Mapped[Key] = mapped_column(primary_key=True)
    position: Mapped[int | None]
    status: Mapped[Line]
    result: Mapped[Any | None] = mapped_column(JSON)
