"""Flags that people set while the system runs, and who changed each of them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, Integer, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt, Key, Line


class Flag(Base):
    """A switch: on, off, on for a part, or for those it lists."""

    __tablename__ = "flags"

    name: Mapped[Key] = mapped_column(primary_key=True)
    on: Mapped[bool] = mapped_column("is_on", server_default=text("true"))
    #: Of those it is on for, the part in hundredths of a percent; null for all.
    share: Mapped[int | None] = mapped_column(Integer)
    #: Values by attribute, as {"caller": ["acme"]}: on for these, whatever else it says; and off for those.
    allow: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    deny: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    note: Mapped[Line] = mapped_column(server_default="")
    #: The change that made it what it is.
    revision: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[CreatedAt]

    __table_args__ = (CheckConstraint("share BETWEEN 0 AND 10000", name="share"),)


class FlagChange(Base):
    """One change of one flag. Its ids count all changes: the highest is the version of the flags as a whole."""

    __tablename__ = "flag_changes"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    name: Mapped[Key]
    actor: Mapped[Line]
    #: The rule as it was and as it became; null where there was none.
    before: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    note: Mapped[Line] = mapped_column(server_default="")
    changed_at: Mapped[CreatedAt]

    __table_args__ = (Index("flag_changes_name_ix", "name", "id"),)
