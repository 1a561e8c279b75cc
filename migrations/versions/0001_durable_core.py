"""Create the tables of the durable core."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE attempts (
    job_id TEXT COLLATE "C" NOT NULL,
    attempt INTEGER NOT NULL,
    worker_id UUID,
    started_at TIMESTAMP WITH TIME ZONE,
    ended_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    outcome TEXT NOT NULL,
    error TEXT,
    traceback TEXT,
    CONSTRAINT attempts_pkey PRIMARY KEY (job_id, attempt)
);
CREATE INDEX attempts_ended_ix ON attempts (ended_at);

CREATE TABLE chord_parts (
    group_id TEXT COLLATE "C" NOT NULL,
    task_id TEXT COLLATE "C" NOT NULL,
    position INTEGER,
    status TEXT NOT NULL,
    result JSON,
    CONSTRAINT chord_parts_pkey PRIMARY KEY (group_id, task_id)
);

CREATE TABLE chords (
    group_id TEXT COLLATE "C" NOT NULL,
    size INTEGER,
    returned INTEGER DEFAULT '0' NOT NULL,
    header JSON,
    body JSON,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    done_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT chords_pkey PRIMARY KEY (group_id)
);
CREATE INDEX chords_created_ix ON chords (created_at);

CREATE TABLE effects (
    job_id TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT effects_pkey PRIMARY KEY (job_id, name)
);
CREATE INDEX effects_created_ix ON effects (created_at);

CREATE TABLE job_history (
    id TEXT COLLATE "C" NOT NULL,
    task TEXT NOT NULL,
    queue TEXT NOT NULL,
    priority SMALLINT DEFAULT '5' NOT NULL,
    state TEXT NOT NULL,
    message JSON NOT NULL,
    args TEXT DEFAULT '()' NOT NULL,
    kwargs TEXT DEFAULT '{}' NOT NULL,
    revision INTEGER DEFAULT '0' NOT NULL,
    attempt INTEGER DEFAULT '0' NOT NULL,
    max_attempts INTEGER,
    crashes SMALLINT DEFAULT '0' NOT NULL,
    caller TEXT,
    idempotency_key TEXT,
    parent_id TEXT,
    root_id TEXT,
    group_id TEXT,
    worker_id UUID,
    progress JSONB,
    error TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    available_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    started_at TIMESTAMP WITH TIME ZONE,
    claimed_at TIMESTAMP WITH TIME ZONE,
    finished_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    result JSON,
    children JSON,
    traceback TEXT,
    CONSTRAINT job_history_pkey PRIMARY KEY (id, finished_at),
    CONSTRAINT job_history_state_check CHECK (state IN ('succeeded', 'failed', 'cancelled', 'expired', 'discarded'))
)
 PARTITION BY RANGE (finished_at);
CREATE INDEX job_history_unhappy_ix ON job_history (finished_at) WHERE state <> 'succeeded';

CREATE TABLE job_keys (
    caller TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    payload_hash BYTEA NOT NULL,
    job_id TEXT COLLATE "C" NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT job_keys_pkey PRIMARY KEY (caller, key)
);
CREATE INDEX job_keys_expires_ix ON job_keys (expires_at);

CREATE TABLE jobs (
    id TEXT COLLATE "C" NOT NULL,
    task TEXT NOT NULL,
    queue TEXT NOT NULL,
    priority SMALLINT DEFAULT '5' NOT NULL,
    state TEXT NOT NULL,
    message JSON NOT NULL,
    args TEXT DEFAULT '()' NOT NULL,
    kwargs TEXT DEFAULT '{}' NOT NULL,
    revision INTEGER DEFAULT '0' NOT NULL,
    attempt INTEGER DEFAULT '0' NOT NULL,
    max_attempts INTEGER,
    crashes SMALLINT DEFAULT '0' NOT NULL,
    caller TEXT,
    idempotency_key TEXT,
    parent_id TEXT,
    root_id TEXT,
    group_id TEXT,
    worker_id UUID,
    progress JSONB,
    error TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    available_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    started_at TIMESTAMP WITH TIME ZONE,
    claimed_at TIMESTAMP WITH TIME ZONE,
    claim_token UUID,
    delivery_tag TEXT,
    dispatch_epoch TEXT,
    dispatched_at TIMESTAMP WITH TIME ZONE,
    unique_key TEXT,
    unique_until TIMESTAMP WITH TIME ZONE,
    cancel_requested BOOLEAN DEFAULT false NOT NULL,
    CONSTRAINT jobs_pkey PRIMARY KEY (id),
    CONSTRAINT jobs_state_check CHECK (state IN ('scheduled', 'queued', 'running')),
    CONSTRAINT jobs_priority_check CHECK (priority BETWEEN 0 AND 9),
    CONSTRAINT jobs_claim_check CHECK (state <> 'running' OR (claim_token IS NOT NULL AND claimed_at IS NOT NULL))
)
 WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX jobs_cancelled_ix ON jobs (id) WHERE cancel_requested AND state <> 'running';
CREATE INDEX jobs_due_ix ON jobs (queue, priority, available_at, id) WHERE dispatch_epoch IS NULL AND state IN ('scheduled', 'queued');
CREATE INDEX jobs_expires_ix ON jobs (expires_at) WHERE expires_at IS NOT NULL AND state <> 'running';
CREATE INDEX jobs_running_ix ON jobs (worker_id) WHERE state = 'running';
CREATE INDEX jobs_sent_ix ON jobs (dispatched_at) WHERE dispatch_epoch IS NOT NULL AND state = 'queued';
CREATE UNIQUE INDEX jobs_unique_ix ON jobs (unique_key) WHERE unique_key IS NOT NULL;

CREATE TABLE queues (
    name TEXT COLLATE "C" NOT NULL,
    paused BOOLEAN DEFAULT false NOT NULL,
    "window" INTEGER,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT queues_pkey PRIMARY KEY (name),
    CONSTRAINT queues_window_check CHECK ("window" > 0)
);

CREATE TABLE schedules (
    name TEXT COLLATE "C" NOT NULL,
    task TEXT NOT NULL,
    args JSONB DEFAULT '[]' NOT NULL,
    kwargs JSONB DEFAULT '{}' NOT NULL,
    options JSONB DEFAULT '{}' NOT NULL,
    crontab TEXT,
    every_s FLOAT,
    timezone TEXT DEFAULT 'UTC' NOT NULL,
    enabled BOOLEAN DEFAULT true NOT NULL,
    catch_up TEXT DEFAULT 'once' NOT NULL,
    source TEXT DEFAULT 'people' NOT NULL,
    anchor TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    last_tick TIMESTAMP WITH TIME ZONE,
    next_tick TIMESTAMP WITH TIME ZONE,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT schedules_pkey PRIMARY KEY (name),
    CONSTRAINT schedules_kind_check CHECK ((crontab IS NULL) <> (every_s IS NULL)),
    CONSTRAINT schedules_every_check CHECK (every_s > 0),
    CONSTRAINT schedules_catch_up_check CHECK (catch_up IN ('skip', 'once', 'all'))
);
CREATE INDEX schedules_next_ix ON schedules (next_tick) WHERE enabled;

CREATE TABLE worker_nodes (
    id UUID NOT NULL,
    name TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    queues TEXT[] NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    beat_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    left_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT worker_nodes_pkey PRIMARY KEY (id)
);
CREATE INDEX worker_nodes_beat_ix ON worker_nodes (beat_at) WHERE left_at IS NULL;

-- Whatever ends on a day without a partition of its own is kept all the same.
CREATE TABLE job_history_default PARTITION OF job_history DEFAULT;
"""


def upgrade() -> None:
    """Create everything; the database is new, so nothing is locked that anybody uses."""
    op.execute(_TABLES)


def downgrade() -> None:
    """Drop everything."""
    op.execute(
        "DROP TABLE IF EXISTS attempts, chord_parts, chords, effects, job_history, job_keys, jobs, queues, schedules, worker_nodes CASCADE"
    )
