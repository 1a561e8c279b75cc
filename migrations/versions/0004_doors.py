"""Let jobs carry a callback and metadata, and keep a registry of tasks."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_COLUMNS = """
ALTER TABLE jobs ADD COLUMN callback_url TEXT, ADD COLUMN metadata JSONB;
ALTER TABLE job_history ADD COLUMN callback_url TEXT, ADD COLUMN metadata JSONB;
"""
_TASKS = """
CREATE TABLE task_types (
    name TEXT COLLATE "C" NOT NULL,
    queue TEXT NOT NULL,
    priority SMALLINT NOT NULL,
    max_attempts INTEGER,
    expires_s DOUBLE PRECISION,
    headers JSON NOT NULL,
    arguments JSONB NOT NULL,
    positional JSONB NOT NULL,
    open_ended BOOLEAN DEFAULT false NOT NULL,
    limited BOOLEAN DEFAULT false NOT NULL,
    is_unique BOOLEAN DEFAULT false NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT task_types_pkey PRIMARY KEY (name)
);
"""
_DROP = """
DROP TABLE IF EXISTS task_types;
ALTER TABLE jobs DROP COLUMN callback_url, DROP COLUMN metadata;
ALTER TABLE job_history DROP COLUMN callback_url, DROP COLUMN metadata;
"""


def upgrade() -> None:
    """Add the columns and the registry. The release before writes neither and reads neither."""
    op.execute(_COLUMNS)
    op.execute(_TASKS)


def downgrade() -> None:
    """Drop them; callbacks that are not made yet are forgotten."""
    op.execute(_DROP)
