"""Add `holdfast.enqueue_many` to the SQL door: many calls of one task, written by one statement."""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

ROLE = "holdfast_enqueuer"

#: Most of what an INSERT costs is for its beginning: the table's checks, triggers and partial indexes are read and prepared for
#: each anew. So the calls are looked at one by one, and written together.
_ENQUEUE_MANY = """
CREATE FUNCTION holdfast.enqueue_many(
    task text, calls jsonb[], queue text DEFAULT NULL, priority int DEFAULT NULL, caller text DEFAULT NULL
) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    kind record;
    ids text[];
    place int := -1;
    call jsonb;
    by_name boolean;
    body text;
    why text;
    told text;
    advice text;
    sound boolean;
    now timestamptz := clock_timestamp();
BEGIN
    IF task IS NULL THEN
        PERFORM holdfast.refuse('invalid_job', 'task', 'it is missing');
    END IF;
    SELECT t.queue, t.priority, t.expires_s, t.max_attempts, t.arguments, t.positional, t.open_ended, t.names, t.queues,
           t.max_message_bytes, '{{"headers":' || left(rtrim(t.headers::text), -1) AS head,
           CASE WHEN t.limited OR t.is_unique OR EXISTS (SELECT FROM {schema}.limit_policies p WHERE p.enabled AND p.kind = 'limit')
                THEN '?' END AS line
      INTO kind FROM {schema}.task_types t WHERE t.name = task;
    IF NOT FOUND THEN
        PERFORM holdfast.refuse('unknown_task', 'task', 'no task ' || holdfast.quoted(task) || ' is registered that makes jobs',
            'workers and relays register the tasks they know as they start');
    ELSIF queue IS NOT NULL AND NOT queue = ANY(kind.queues) THEN
        PERFORM holdfast.refuse('unknown_queue', 'queue', 'queue ' || holdfast.quoted(queue) || ' is not one of HOLDFAST_QUEUES: '
            || array_to_string(kind.queues, ', '));
    ELSIF priority NOT BETWEEN 0 AND 9 THEN
        PERFORM holdfast.refuse('invalid_job', 'priority', priority || ' is not a whole number from 0 (first) to 9 (last)');
    END IF;
    IF caller IS NOT NULL THEN sound := holdfast.check_text('caller', caller); END IF;
    IF calls IS NULL THEN
        RETURN;
    END IF;
    BEGIN
        FOREACH call IN ARRAY calls LOOP
            place := place + 1;
            by_name := jsonb_typeof(call) = 'object';
            IF by_name THEN
                sound := holdfast.check_arguments(task, '[]', call, kind.arguments, kind.positional, kind.names, kind.open_ended);
            ELSIF jsonb_typeof(call) = 'array' THEN
                sound := holdfast.check_arguments(task, call, '{{}}', kind.arguments, kind.positional, kind.names, kind.open_ended);
            ELSE
                PERFORM holdfast.refuse('invalid_job', 'args', 'it is neither a list nor an object but of type '
                    || coalesce(jsonb_typeof(call), 'null'));
            END IF;
            body := call::text;
            IF length(body) > 300 OR strpos(body, '"__type__"') > 0 THEN
                body := '[' || body || ', [], {{"callbacks": null, "errbacks": null, "chain": null, "chord": null}}]';
                sound := holdfast.check_readable(call, '[]', body, kind.max_message_bytes);
            END IF;
        END LOOP;
    EXCEPTION WHEN invalid_parameter_value THEN
        GET STACKED DIAGNOSTICS why = MESSAGE_TEXT, told = PG_EXCEPTION_DETAIL, advice = PG_EXCEPTION_HINT;
        PERFORM holdfast.refuse(told::json ->> 'code', left('calls.' || place || '.' || (told::json ->> 'field'), 255),
            substr(why, length(told::json ->> 'field') + 3), advice);
    END;
    ids := ARRAY(SELECT {new_id} FROM generate_series(1, cardinality(calls)));
    INSERT INTO {schema}.jobs (id, task, queue, priority, state, message, args, kwargs, available_at, expires_at, max_attempts, caller,
                               root_id, gate)
    SELECT new.id, task, coalesce(queue, kind.queue), coalesce(priority, kind.priority), 'queued',
           (kind.head || ',"group":null,"parent_id":null,"origin":"sql","id":"' || new.id || '","root_id":"' || new.id
               || '","argsrepr":' || to_json(shown.args) || ',"kwargsrepr":' || to_json(shown.kwargs)
               || '}},"properties":{{"correlation_id":"' || new.id || '","reply_to":""}},"body":'
               || to_json('[' || new.args || ', ' || new.kwargs || ', {{"callbacks": null, "errbacks": null, "chain": null, "chord": null}}]')
               || ',"content-type":"application/json","content-encoding":"utf-8"}}')::json,
           shown.args, shown.kwargs, now, now + kind.expires_s * interval '1 second', kind.max_attempts, caller, new.id, kind.line
      FROM (SELECT given.id, CASE jsonb_typeof(given.call) WHEN 'object' THEN '[]' ELSE given.call::text END AS args,
                   CASE jsonb_typeof(given.call) WHEN 'object' THEN given.call::text ELSE '{{}}' END AS kwargs
              FROM unnest(ids, calls) AS given (id, call) OFFSET 0) AS new,
           LATERAL (SELECT CASE new.args WHEN '[]' THEN '()' ELSE '(' || left(substr(new.args, 2, length(new.args) - 2), 1022) || ')' END
                               AS args, left(new.kwargs, 1024) AS kwargs OFFSET 0) AS shown;
    RETURN QUERY SELECT unnest(ids);
END $$;
REVOKE ALL ON FUNCTION holdfast.enqueue_many FROM PUBLIC;
"""

#: The role is missing where the user that migrates may not create roles; 0007 says so.
_GRANT = f"""
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') THEN
        GRANT EXECUTE ON FUNCTION holdfast.enqueue_many TO {ROLE};
    END IF;
END $$
"""

#: Before Postgres 18: 48 bits of milliseconds, then random, as `worker.clock.uuid7`.
_UUID7 = """overlay(overlay(replace(gen_random_uuid()::text, '-', '')
        PLACING lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') FROM 1) PLACING '7' FROM 13)::uuid::text"""


def upgrade() -> None:
    """Create the function. The release before does not know it."""
    conn = op.get_bind()
    version = int(conn.execute(text("SHOW server_version_num")).scalar_one())
    schema = conn.execute(text("SELECT quote_ident(current_schema())")).scalar_one()
    new_id = "uuidv7()::text" if version >= 180000 else _UUID7
    conn.exec_driver_sql(_ENQUEUE_MANY.format(schema=schema, new_id=new_id))
    conn.exec_driver_sql(_GRANT)


def downgrade() -> None:
    """Drop it."""
    op.execute("DROP FUNCTION holdfast.enqueue_many")
