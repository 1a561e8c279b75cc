"""Create the tables of flags and of notes on jobs, and the index of jobs that a flag holds back."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE flags (
    name TEXT COLLATE "C" NOT NULL,
    is_on BOOLEAN DEFAULT true NOT NULL,
    share INTEGER,
    allow JSONB DEFAULT '{}' NOT NULL,
    deny JSONB DEFAULT '{}' NOT NULL,
    note TEXT DEFAULT '' NOT NULL,
    revision BIGINT NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT flags_pkey PRIMARY KEY (name),
    CONSTRAINT flags_share_check CHECK (share BETWEEN 0 AND 10000)
);

CREATE TABLE flag_changes (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    name TEXT COLLATE "C" NOT NULL,
    actor TEXT NOT NULL,
    before JSONB,
    after JSONB,
    note TEXT DEFAULT '' NOT NULL,
    changed_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT flag_changes_pkey PRIMARY KEY (id)
);
CREATE INDEX flag_changes_name_ix ON flag_changes (name, id);

CREATE TABLE job_notes (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    job_id TEXT COLLATE "C" NOT NULL,
    author TEXT NOT NULL,
    text TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT job_notes_pkey PRIMARY KEY (id)
);
CREATE INDEX job_notes_job_ix ON job_notes (job_id, id);
CREATE INDEX job_notes_created_ix ON job_notes (created_at);
"""

#: No job is held back yet, so it is made in one look at the living, under the lock of this transaction.
_PARKED = """
CREATE INDEX jobs_parked_ix ON jobs (dispatch_epoch) WHERE dispatch_epoch IS NOT NULL AND state = 'scheduled'
"""
_DROP = """
UPDATE jobs SET dispatch_epoch = NULL WHERE dispatch_epoch IS NOT NULL AND state = 'scheduled';
DROP INDEX IF EXISTS jobs_parked_ix;
DROP TABLE IF EXISTS job_notes, flag_changes, flags;
"""


def upgrade() -> None:
    """Create the tables and the index.

    The release before leaves a job that a flag holds back where it is, so nothing is sent that should wait.
    """
    op.execute(_TABLES)
    op.execute(_PARKED)


def downgrade() -> None:
    """Drop them. Jobs that a flag held back are due again, and notes are forgotten."""
    op.execute(_DROP)
