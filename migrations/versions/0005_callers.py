"""Create the table of those who may use the HTTP gateway."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TABLE = """
CREATE TABLE callers (
    name TEXT COLLATE "C" NOT NULL,
    prefix TEXT COLLATE "C" NOT NULL,
    key_hash BYTEA NOT NULL,
    old_prefix TEXT COLLATE "C",
    old_key_hash BYTEA,
    old_key_until TIMESTAMP WITH TIME ZONE,
    scopes TEXT[] NOT NULL,
    tasks TEXT[],
    queues TEXT[],
    rate TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    rotated_at TIMESTAMP WITH TIME ZONE,
    revoked_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT callers_pkey PRIMARY KEY (name)
);
CREATE UNIQUE INDEX callers_prefix_ix ON callers (prefix);
CREATE UNIQUE INDEX callers_old_prefix_ix ON callers (old_prefix);
"""


def upgrade() -> None:
    """Create it."""
    op.execute(_TABLE)


def downgrade() -> None:
    """Drop it: nobody gets in any more."""
    op.execute("DROP TABLE callers")
