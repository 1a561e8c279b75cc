"""Who may use the console."""

from __future__ import annotations

from sqlalchemy import CheckConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt, Key, Line, Moment


class Operator(Base):
    """A person with a role; the password itself is nowhere, only its argon2 hash."""

    __tablename__ = "operators"

    name: Mapped[Key] = mapped_column(primary_key=True)
    password_hash: Mapped[Line]
    #: viewer, operator or admin.
    role: Mapped[Line]
    created_at: Mapped[CreatedAt]
    #: When the password was last set, or the operator last disabled: sessions that began before count no more.
    changed_at: Mapped[CreatedAt]
    disabled_at: Mapped[Moment | None]

    __table_args__ = (CheckConstraint("role IN ('viewer', 'operator', 'admin')", name="role"),)
