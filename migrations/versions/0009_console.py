"""Create the tables of operators and of what they did."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE operators (
    name TEXT COLLATE "C" NOT NULL,
    password_hash TEXT NOT NULL,
    role TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    changed_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    disabled_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT operators_pkey PRIMARY KEY (name),
    CONSTRAINT operators_role_check CHECK (role IN ('viewer', 'operator', 'admin'))
);

CREATE TABLE audit_log (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    details JSONB DEFAULT '{}' NOT NULL,
    at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT audit_log_pkey PRIMARY KEY (id)
);
CREATE INDEX audit_log_at_ix ON audit_log (at);
CREATE INDEX audit_log_actor_ix ON audit_log (actor, id);
CREATE INDEX audit_log_action_ix ON audit_log (action, id);
CREATE INDEX audit_log_target_ix ON audit_log (target, id);
"""


def upgrade() -> None:
    """Create the tables; the release before does not know them."""
    op.execute(_TABLES)


def downgrade() -> None:
    """Drop them: nobody can log in to the console, and what was done there is forgotten."""
    op.execute("DROP TABLE IF EXISTS audit_log, operators")
