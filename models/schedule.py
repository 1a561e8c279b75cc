"""Periodic jobs: static ones from the code and those people add while the system runs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CheckConstraint, Float, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt, Key, Line, Moment


class Schedule(Base):
    """A task, when it runs, and how it makes up for ticks it missed."""

    __tablename__ = "schedules"

    name: Mapped[Key] = mapped_column(primary_key=True)
    task: Mapped[Line]
    args: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'"))
    kwargs: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    #: Options of apply_async: queue, priority, expires.
    options: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    #: Five crontab fields; null for an interval.
    crontab: Mapped[Line | None]
    every_s: Mapped[float | None] = mapped_column(Float)
    timezone: Mapped[Line] = mapped_column(server_default="UTC")
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    catch_up: Mapped[Line] = mapped_column(server_default="once")
    #: code or people
    source: Mapped[Line] = mapped_column(server_default="people")
    #: Where intervals are counted from.
    anchor: Mapped[CreatedAt]
    last_tick: Mapped[Moment | None]
    next_tick: Mapped[Moment | None]
    updated_at: Mapped[CreatedAt]

    __table_args__ = (
        CheckConstraint("(crontab IS NULL) <> (every_s IS NULL)", name="kind"),
        CheckConstraint("every_s > 0", name="every"),
        CheckConstraint("catch_up IN ('skip', 'once', 'all')", name="catch_up"),
        Index("schedules_next_ix", "next_tick", postgresql_where=text("enabled")),
    )
