"""Create the outbox of the cache."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TABLE = """
CREATE TABLE cache_outbox (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    keys TEXT[] DEFAULT '{}' NOT NULL,
    tags TEXT[] DEFAULT '{}' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT cache_outbox_pkey PRIMARY KEY (id)
)
 WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
"""


def upgrade() -> None:
    """Create the table; it is new, so the release before does not know it and nothing is locked that anybody uses."""
    op.execute(_TABLE)


def downgrade() -> None:
    """Drop the table. What it still owes the cache is forgotten with it: flush the cache role after a downgrade."""
    op.execute("DROP TABLE IF EXISTS cache_outbox")
