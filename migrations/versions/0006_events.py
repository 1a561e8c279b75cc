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

#: The schema stands in the functions' text: whoever writes a job, with whatever search path, writes its event. What is inserted
#: is told of by the statement. A trigger's WHEN would cost each statement more: Postgres reads and prepares it anew each time.
_FUNCTIONS = """
DO $do$
BEGIN
  EXECUTE format($function$
    CREATE FUNCTION write_job_events() RETURNS trigger LANGUAGE plpgsql AS $body$
    BEGIN
      -- Asked for first: an INSERT of nothing would open the table with its indexes all the same.
      IF EXISTS (SELECT FROM written WHERE (caller IS NULL) = (TG_ARGV[0] = 'no caller')) THEN
        INSERT INTO %1$I.job_events (job_id, task, queue, caller, key, state, attempt, detail)
        SELECT id, task, queue, caller, idempotency_key, state, attempt, left(error, 1000) FROM written
         WHERE (caller IS NULL) = (TG_ARGV[0] = 'no caller');
      END IF;
      RETURN NULL;
    END $body$;
    CREATE FUNCTION write_job_event() RETURNS trigger LANGUAGE plpgsql AS $body$
    BEGIN
      IF (NEW.caller IS NULL) = (TG_ARGV[0] = 'no caller') AND (OLD.state <> NEW.state OR OLD.attempt <> NEW.attempt) THEN
        INSERT INTO %1$I.job_events (job_id, task, queue, caller, key, state, attempt, detail)
        VALUES (NEW.id, NEW.task, NEW.queue, NEW.caller, NEW.idempotency_key, NEW.state, NEW.attempt, left(NEW.error, 1000));
      END IF;
      RETURN NULL;
    END $body$
  $function$, current_schema());
END $do$;
"""

_INSERTED = "REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION write_job_events"
#: By name: when each fires, where, and what it does. Each comes a second time, disabled, for the jobs that have no caller.
_EVENTS = {
    "job_event_accepted": ("INSERT", "jobs", _INSERTED),
    "job_event_changed": ("UPDATE OF state", "jobs", "FOR EACH ROW EXECUTE FUNCTION write_job_event"),
    "job_event_ended": ("INSERT", "job_history", _INSERTED),
}
_TRIGGER = "CREATE TRIGGER {name} AFTER {event} ON {table} {does}('{whose}')"


def upgrade() -> None:
    """Create the tables, which the release before does not know, and the triggers, which fire for what it writes as well."""
    op.execute(_TABLES)
    op.execute(_FUNCTIONS)
    for name, (event, table, does) in _EVENTS.items():
        for suffix, whose in (("", "caller"), ("_all", "no caller")):
            op.execute(_TRIGGER.format(name=name + suffix, event=event, table=table, does=does, whose=whose))
        op.execute(f"ALTER TABLE {table} DISABLE TRIGGER {name}_all")


def downgrade() -> None:
    """Drop all of it. Services that follow the events hear of nothing any more."""
    for name, (_, table, _) in _EVENTS.items():
        for suffix in ("", "_all"):
            op.execute(f"DROP TRIGGER IF EXISTS {name}{suffix} ON {table}")
    op.execute("DROP FUNCTION IF EXISTS write_job_event, write_job_events")
    op.execute("DROP TABLE IF EXISTS job_events, event_readers")
