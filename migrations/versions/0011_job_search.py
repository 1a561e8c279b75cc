"""Index the past for those who search it: in the order in which jobs ended, by task, queue, caller and state, and by family."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

#: What each is made of, and of which rows.
_INDEXES = {
    "job_history_finished_ix": "(finished_at, id)",
    "job_history_task_ix": "(task, finished_at, id)",
    "job_history_queue_ix": "(queue, finished_at, id)",
    "job_history_caller_ix": "(caller, finished_at, id) WHERE caller IS NOT NULL",
    "job_history_state_ix": "(state, finished_at, id) WHERE state <> 'succeeded'",
    "job_history_family_ix": "(root_id) WHERE root_id <> id",
}

#: Of a day that is over nobody's writes wait for an index, so these come first; today's and the default partition come last. An
#: index of all history, which every job that ends would wait for, then only takes to itself what is there.
_BY_PARTITION = """
DO $$
DECLARE part regclass;
BEGIN
  FOR part IN SELECT relid FROM pg_partition_tree('job_history') WHERE isleaf
               ORDER BY relid::text = 'job_history_default',
                        relid::text >= 'job_history_' || to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYYMMDD'), relid::text
  LOOP
    {creates}
  END LOOP;
END $$
"""
_CREATE_PART = "EXECUTE format('CREATE INDEX ON %s {columns}', part);"


def upgrade() -> None:
    """Create the indexes; jobs that end wait while those of today are made. The release before needs none of them."""
    creates = "\n    ".join(_CREATE_PART.format(columns=columns.replace("'", "''")) for columns in _INDEXES.values())
    op.execute(_BY_PARTITION.format(creates=creates))
    for name, columns in _INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON job_history {columns}")
    op.execute("DROP INDEX job_history_unhappy_ix")
    # Of a plain job the predicate is false: only parts of a canvas are in it.
    op.execute("CREATE INDEX jobs_family_ix ON jobs (root_id) WHERE root_id <> id")


def downgrade() -> None:
    """Drop them, and make the one again that the release before had."""
    op.execute("CREATE INDEX job_history_unhappy_ix ON job_history (finished_at) WHERE state <> 'succeeded'")
    for name in ("jobs_family_ix", *_INDEXES):
        op.execute(f"DROP INDEX IF EXISTS {name}")
