"""Create the events of jobs, and what writes one with each change of a job's state."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE job_events (
    xid XID8 DEFAULT pg_current_xact_id() NOT NULL,
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    job_id TEXT COLLATE "C" NOT NULL,
    task TEXT NOT NULL,
    queue TEXT NOT NULL,
    caller TEXT,
    key TEXT,
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    detail TEXT,
    at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT job_events_pkey PRIMARY KEY (xid, id)
);
CREATE INDEX job_events_job_ix ON job_events (job_id, id);
CREATE INDEX job_events_at_ix ON job_events USING brin (at);

CREATE TABLE event_readers (
    name TEXT COLLATE "C" NOT NULL,
    position TEXT NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT event_readers_pkey PRIMARY KEY (name)
);
"""

#: The schema stands in the function's text: whoever writes a job, with whatever search path, writes its event.
_FUNCTION = """
DO $do$
BEGIN
  EXECUTE format($function$
    CREATE FUNCTION write_job_event() RETURNS trigger LANGUAGE plpgsql AS $body$
    BEGIN
      INSERT INTO %I.job_events (job_id, task, queue, caller, key, state, attempt, detail)
      VALUES (NEW.id, NEW.task, NEW.queue, NEW.caller, NEW.idempotency_key, NEW.state, NEW.attempt, left(NEW.error, 1000));
      RETURN NULL;
    END $body$
  $function$, current_schema());
END $do$;
"""

#: By name: when each fires, where, and what must hold beside it. Those of jobs that have no caller come a second time, disabled.
_EVENTS = {
    "job_event_accepted": ("INSERT", "jobs", "true"),
    "job_event_changed": ("UPDATE OF state", "jobs", "(OLD.state <> NEW.state OR OLD.attempt <> NEW.attempt)"),
    "job_event_ended": ("INSERT", "job_history", "true"),
}
_TRIGGER = """
CREATE TRIGGER {name} AFTER {event} ON {table} FOR EACH ROW
  WHEN (NEW.caller IS {null} AND {condition}) EXECUTE FUNCTION write_job_event()
"""


def upgrade() -> None:
    """Create the tables, which the release before does not know, and the triggers, which fire for what it writes as well."""
    op.execute(_TABLES)
    op.execute(_FUNCTION)
    for name, (event, table, condition) in _EVENTS.items():
        for suffix, null in (("", "NOT NULL"), ("_all", "NULL")):
            op.execute(_TRIGGER.format(name=name + suffix, event=event, table=table, null=null, condition=condition))
        op.execute(f"ALTER TABLE {table} DISABLE TRIGGER {name}_all")


def downgrade() -> None:
    """Drop all of it. Services that follow the events hear of nothing any more."""
    for name, (_, table, _) in _EVENTS.items():
        for suffix in ("", "_all"):
            op.execute(f"DROP TRIGGER IF EXISTS {name}{suffix} ON {table}")
    op.execute("DROP FUNCTION IF EXISTS write_job_event")
    op.execute("DROP TABLE IF EXISTS job_events, event_readers")
