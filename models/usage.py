"""What metered calls have spent, and what those in flight have reserved: the record that budgets are rebuilt from."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, Integer, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt, Key, Line, Moment


class Usage(Base):
    """The spend of one call, settled. It counts for the moment it was reserved at."""

    __tablename__ = "usage"

    reservation_id: Mapped[Key] = mapped_column(primary_key=True)
    #: The first level of the subject, whose tree it counts in.
    root: Mapped[Key]
    subject: Mapped[Key]
    model: Mapped[Line] = mapped_column(server_default="")
    job_id: Mapped[Key | None]
    requests: Mapped[int] = mapped_column(Integer)
    tokens_in: Mapped[int] = mapped_column(BigInteger)
    tokens_out: Mapped[int] = mapped_column(BigInteger)
    micros: Mapped[int] = mapped_column(BigInteger)
    reserved_at: Mapped[Moment]
    settled_at: Mapped[CreatedAt]
    #: Whether Redis has counted it.
    told: Mapped[bool] = mapped_column(server_default=text("false"))

    __table_args__ = (
        Index("usage_root_ix", "root", "reserved_at"),
        Index("usage_reserved_ix", "reserved_at"),
        Index("usage_untold_ix", "settled_at", postgresql_where=text("NOT told")),
    )


class UsageReservation(Base):
    """A call that was reserved and has not ended. One whose lease is over counts no more, but is still known when it settles."""

    __tablename__ = "usage_reservations"

    id: Mapped[Key] = mapped_column(primary_key=True)
    root: Mapped[Key]
    subject: Mapped[Key]
    model: Mapped[Line] = mapped_column(server_default="")
    job_id: Mapped[Key | None]
    requests: Mapped[int] = mapped_column(Integer)
    tokens: Mapped[int] = mapped_column(BigInteger)
    micros: Mapped[int | None] = mapped_column(BigInteger)
    reserved_at: Mapped[CreatedAt]
    expires_at: Mapped[Moment]

    __table_args__ = (
        Index("usage_reservations_root_ix", "root", "expires_at"),
        Index("usage_reservations_expires_ix", "expires_at"),
        # Its rows live for seconds, and each rebuild reads them: what they leave behind is swept up early.
        {"postgresql_with": {"autovacuum_vacuum_scale_factor": 0.0, "autovacuum_vacuum_threshold": 1000}},
    )
