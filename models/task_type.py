"""The tasks that this system's processes know, for those who enqueue without Python."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ARRAY, JSON, SmallInteger, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt, Key, Line


class TaskType(Base):
    """One task: where its jobs go, what their messages say, and which arguments it takes."""

    __tablename__ = "task_types"

    name: Mapped[Key] = mapped_column(primary_key=True)
    queue: Mapped[Line]
    priority: Mapped[int] = mapped_column(SmallInteger)
    max_attempts: Mapped[int | None]
    expires_s: Mapped[float | None]
    #: The headers of its messages but for what differs from job to job; `json`, so that they come back as they were.
    headers: Mapped[dict[str, Any]] = mapped_column(JSON)
    #: The JSON Schema of its arguments by name.
    arguments: Mapped[dict[str, Any]] = mapped_column(JSONB)
    #: The names that positional arguments go to, in order, and whether there may be further ones.
    positional: Mapped[list[str]] = mapped_column(JSONB)
    open_ended: Mapped[bool] = mapped_column(server_default=text("false"))
    #: Whether its jobs stand in lines, or are one at a time by key: then a process that knows the task completes them.
    limited: Mapped[bool] = mapped_column(server_default=text("false"))
    is_unique: Mapped[bool] = mapped_column(server_default=text("false"))
    #: The names its arguments can be given by.
    names: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    #: What its process has set: the queues there are, seconds an idempotency key is kept, and the largest arguments in bytes.
    queues: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    key_ttl_s: Mapped[int] = mapped_column(server_default="86400")
    max_message_bytes: Mapped[int] = mapped_column(server_default="1048576")
    updated_at: Mapped[CreatedAt]
