"""Create the tables of limits and budgets, and the lines in which limited jobs wait."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE limit_policies (
    name TEXT COLLATE "C" NOT NULL,
    kind TEXT DEFAULT 'limit' NOT NULL,
    scope TEXT NOT NULL,
    rate TEXT NOT NULL,
    on_outage TEXT DEFAULT 'closed' NOT NULL,
    enabled BOOLEAN DEFAULT true NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT limit_policies_pkey PRIMARY KEY (name),
    CONSTRAINT limit_policies_kind_check CHECK (kind IN ('limit', 'budget')),
    CONSTRAINT limit_policies_on_outage_check CHECK (on_outage IN ('closed', 'local', 'open'))
);

CREATE TABLE usage (
    reservation_id TEXT COLLATE "C" NOT NULL,
    root TEXT COLLATE "C" NOT NULL,
    subject TEXT COLLATE "C" NOT NULL,
    model TEXT DEFAULT '' NOT NULL,
    job_id TEXT COLLATE "C",
    requests INTEGER NOT NULL,
    tokens_in BIGINT NOT NULL,
    tokens_out BIGINT NOT NULL,
    micros BIGINT NOT NULL,
    reserved_at TIMESTAMP WITH TIME ZONE NOT NULL,
    settled_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    told BOOLEAN DEFAULT false NOT NULL,
    CONSTRAINT usage_pkey PRIMARY KEY (reservation_id)
);
CREATE INDEX usage_root_ix ON usage (root, reserved_at);
CREATE INDEX usage_reserved_ix ON usage (reserved_at);
CREATE INDEX usage_untold_ix ON usage (settled_at) WHERE NOT told;

CREATE TABLE usage_reservations (
    id TEXT COLLATE "C" NOT NULL,
    root TEXT COLLATE "C" NOT NULL,
    subject TEXT COLLATE "C" NOT NULL,
    model TEXT DEFAULT '' NOT NULL,
    job_id TEXT COLLATE "C",
    requests INTEGER NOT NULL,
    tokens BIGINT NOT NULL,
    micros BIGINT,
    reserved_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT usage_reservations_pkey PRIMARY KEY (id)
)
 WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX usage_reservations_root_ix ON usage_reservations (root, expires_at);
CREATE INDEX usage_reservations_expires_ix ON usage_reservations (expires_at);
"""

#: The living jobs are few, so their index is made anew under the lock of this transaction rather than beside it.
_WAITING = "dispatch_epoch IS NULL AND state IN ('scheduled', 'queued')"
_GATE = f"""
ALTER TABLE jobs ADD COLUMN gate TEXT COLLATE "C";
ALTER TABLE job_history ADD COLUMN gate TEXT COLLATE "C";
DROP INDEX jobs_due_ix;
CREATE INDEX jobs_due_ix ON jobs (queue, priority, available_at, id) WHERE gate IS NULL AND {_WAITING};
CREATE INDEX jobs_gated_ix ON jobs (queue, gate, priority, available_at, id) WHERE gate IS NOT NULL AND {_WAITING};
"""
_DROP = f"""
DROP TABLE IF EXISTS usage_reservations, usage, limit_policies;
DROP INDEX jobs_due_ix;
ALTER TABLE jobs DROP COLUMN gate;
ALTER TABLE job_history DROP COLUMN gate;
CREATE INDEX jobs_due_ix ON jobs (queue, priority, available_at, id) WHERE {_WAITING};
"""


def upgrade() -> None:
    """Create the tables, and the lines in which limited jobs wait.

    The release before makes no job that stands in a line. One that it finds it sends without asking, and without an index.
    """
    op.execute(_TABLES)
    op.execute(_GATE)


def downgrade() -> None:
    """Drop them. What was spent is forgotten, and limited jobs go on without their limits."""
    op.execute(_DROP)
