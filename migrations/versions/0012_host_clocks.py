"""Note by how much the clock of each worker's host differs from that of Postgres."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.execute("ALTER TABLE worker_nodes ADD COLUMN ahead_s DOUBLE PRECISION")


def downgrade() -> None:
    """Drop it."""
    op.execute("ALTER TABLE worker_nodes DROP COLUMN ahead_s")
