"""Limits and budgets that people set while the system runs."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt, Key, Line


class LimitPolicy(Base):
    """A limit for every key its scope names, or the budget of every subject its scope fits."""

    __tablename__ = "limit_policies"

    name: Mapped[Key] = mapped_column(primary_key=True)
    #: limit or budget
    kind: Mapped[Line] = mapped_column(server_default="limit")
    #: Of a limit a template such as `{host}`, of a budget a pattern such as `org:*/user:*`.
    scope: Mapped[Line]
    #: Of a limit `10/second`, of a budget `100000 tokens/day, 5000000 micros/day`.
    rate: Mapped[Line]
    on_outage: Mapped[Line] = mapped_column(server_default="closed")
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    updated_at: Mapped[CreatedAt]

    __table_args__ = (
        CheckConstraint("kind IN ('limit', 'budget')", name="kind"),
        CheckConstraint("on_outage IN ('closed', 'local', 'open')", name="on_outage"),
    )
