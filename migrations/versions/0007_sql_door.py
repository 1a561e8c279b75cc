"""Create the SQL door: `holdfast.enqueue`, the role that may call it, and the callback that a job's end sets off."""

from __future__ import annotations

import logging

from alembic import op
from sqlalchemy import text

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

logger = logging.getLogger("alembic.runtime.migration")

ROLE = "holdfast_enqueuer"

#: What SQL must know beside a task's schema: the names it can be called by, and what its process had set.
_COLUMNS = """
ALTER TABLE task_types
    ADD COLUMN names TEXT[] DEFAULT '{}' NOT NULL,
    ADD COLUMN queues TEXT[] DEFAULT '{}' NOT NULL,
    ADD COLUMN key_ttl_s INTEGER DEFAULT '86400' NOT NULL,
    ADD COLUMN max_message_bytes INTEGER DEFAULT '1048576' NOT NULL;
CREATE INDEX jobs_deliveries_ix ON jobs (parent_id) WHERE task = 'webhook.deliver';
"""
_DROP_COLUMNS = """
DROP INDEX jobs_deliveries_ix;
ALTER TABLE task_types DROP COLUMN names, DROP COLUMN queues, DROP COLUMN key_ttl_s, DROP COLUMN max_message_bytes;
"""

#: An error says what every door says: the same code and the same field, as JSON in its detail. These functions and those below run
#: inside the two that pin their search path, and nobody else may call them: to pin it again would double what a call costs.
_REFUSE = """
CREATE FUNCTION holdfast.refuse(code text, field text, why text, hint text DEFAULT '') RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = regexp_replace(refuse.field || ': ' || refuse.why, '[[:cntrl:]]', '?', 'g'),
        DETAIL = json_build_object('code', refuse.code, 'field', refuse.field)::text, HINT = refuse.hint;
END $$;

-- A text as it may stand in a message: short, and on one line whatever it holds.
CREATE FUNCTION holdfast.quoted(given text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$ SELECT to_json(left(given, 60))::text $$;

CREATE FUNCTION holdfast.check_text(field text, given text) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    IF length(given) NOT BETWEEN 1 AND 255 THEN
        PERFORM holdfast.refuse('invalid_job', field, holdfast.quoted(given) || ' is not a text of 1 to 255 characters');
    END IF;
    RETURN true;
END $$;

-- Returns the seconds of a duration, from 0 to a hundred years.
CREATE FUNCTION holdfast.seconds(field text, given interval) RETURNS float8
LANGUAGE plpgsql AS $$
DECLARE
    found float8 := extract(epoch FROM given);
BEGIN
    IF found NOT BETWEEN 0 AND 3155760000 THEN
        PERFORM holdfast.refuse('invalid_job', field, given::text || ' is not a duration from 0 to a hundred years');
    END IF;
    RETURN found;
END $$;
"""

#: The arguments of a call against what the task takes: how many, which names, what must be there, and the JSON type of each.
_CHECK = """
-- Tells whether a value is of the type that a JSON Schema wants. What else the schema says is for whoever runs the job.
CREATE FUNCTION holdfast.fits(given jsonb, wanted jsonb, defs jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    type text := wanted ->> 'type';
BEGIN
    IF type IS NOT NULL THEN
        RETURN type = jsonb_typeof(given)
            OR type = 'integer' AND jsonb_typeof(given) = 'number' AND scale(given::numeric) = 0;
    ELSIF wanted ? '$ref' THEN
        RETURN holdfast.fits(given, coalesce(defs -> substr(wanted ->> '$ref', 9), '{}'), defs);
    ELSIF wanted ? 'anyOf' THEN
        RETURN EXISTS (SELECT FROM jsonb_array_elements(wanted -> 'anyOf') AS one WHERE holdfast.fits(given, one, defs));
    END IF;
    RETURN true;
END $$;

-- Tells whether a name is one of the first so many.
CREATE FUNCTION holdfast.is_among(name text, names jsonb, first int) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT EXISTS (SELECT FROM jsonb_array_elements_text(names) WITH ORDINALITY AS n(one, place) WHERE one = name AND place <= first)
$$;

CREATE FUNCTION holdfast.check_arguments(
    task text, args jsonb, kwargs jsonb, arguments jsonb, positional jsonb, names text[], open_ended boolean
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    given int := jsonb_array_length(args);
    known int := jsonb_array_length(positional);
    kinds jsonb := arguments -> 'properties';
    required jsonb := arguments -> 'required';
    anything boolean := coalesce(arguments ->> 'additionalProperties', 'true') <> 'false';
    name text;
    place int;
BEGIN
    IF given > known AND NOT open_ended THEN
        PERFORM holdfast.refuse('invalid_arguments', 'args.' || known,
            'there are ' || given || ' arguments, and ' || holdfast.quoted(task) || ' takes ' || known);
    END IF;
    IF kwargs <> '{}' THEN
        FOR name IN SELECT jsonb_object_keys(kwargs) LOOP
            IF name = ANY(names) THEN
                FOR place IN 0 .. least(given, known) - 1 LOOP
                    IF positional ->> place = name THEN
                        PERFORM holdfast.refuse('invalid_arguments', 'kwargs.' || name, 'it is given twice');
                    END IF;
                END LOOP;
            ELSIF NOT anything THEN
                PERFORM holdfast.refuse('invalid_arguments', left('kwargs.' || name, 255), 'there is no such argument',
                    'it takes ' || array_to_string(names, ', '));
            END IF;
        END LOOP;
    END IF;
    FOR place IN 0 .. coalesce(jsonb_array_length(required), 0) - 1 LOOP
        name := required ->> place;
        -- Those by position come first, in both lists.
        IF (place >= given OR positional ->> place IS DISTINCT FROM name) AND NOT kwargs ? name
                AND NOT holdfast.is_among(name, positional, given) THEN
            PERFORM holdfast.refuse('invalid_arguments', 'kwargs.' || name, 'it is missing');
        END IF;
    END LOOP;
    FOR place IN 0 .. least(given, known) - 1 LOOP
        IF NOT holdfast.fits(args -> place, kinds -> (positional ->> place), arguments -> '$defs') THEN
            PERFORM holdfast.refuse('invalid_arguments', 'args.' || place,
                'a value of type ' || jsonb_typeof(args -> place) || ' does not fit ' || (kinds -> (positional ->> place))::text);
        END IF;
    END LOOP;
    IF kwargs <> '{}' THEN
        FOR name IN SELECT jsonb_object_keys(kwargs) LOOP
            IF kinds ? name AND NOT holdfast.fits(kwargs -> name, kinds -> name, arguments -> '$defs') THEN
                PERFORM holdfast.refuse('invalid_arguments', 'kwargs.' || name,
                    'a value of type ' || jsonb_typeof(kwargs -> name) || ' does not fit ' || (kinds -> name)::text);
            END IF;
        END LOOP;
    END IF;
    RETURN true;
END $$;

-- What no worker could read back, though it is JSON.
CREATE FUNCTION holdfast.check_readable(args jsonb, kwargs jsonb, body text, most int) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    IF length(body) > most THEN
        PERFORM holdfast.refuse('too_large', 'args', 'the arguments take ' || length(body) || ' characters, ' || most || ' are allowed',
            'store them and pass an id');
    ELSIF length(body) > 400 AND (jsonb_path_exists(args, '$.**{200}') OR jsonb_path_exists(kwargs, '$.**{200}')) THEN
        PERFORM holdfast.refuse('invalid_job', 'args', 'they are nested more than 200 deep');
    ELSIF length(body) > 4300 AND (jsonb_path_exists(args, '$.** ? (@.type() == "number" && (@ >= 1e4300 || @ <= -1e4300))')
            OR jsonb_path_exists(kwargs, '$.** ? (@.type() == "number" && (@ >= 1e4300 || @ <= -1e4300))')) THEN
        PERFORM holdfast.refuse('invalid_job', 'args', 'there is a number of more than 4300 digits');
    ELSIF strpos(body, '"__type__"') > 0 THEN
        PERFORM holdfast.refuse('invalid_job', 'args', 'there is a "__type__", by which Celery marks its own types');
    END IF;
    RETURN true;
END $$;

CREATE FUNCTION holdfast.check_url(given text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    port text := (regexp_match(given, '^[a-z]+://(?:\\[[0-9a-f:.]+\\]|[^/?#@:[:space:][:cntrl:]]+)(?::([0-9]*))?(?:[/?#][^[:space:][:cntrl:]]*)?$', 'i'))[1];
BEGIN
    IF length(given) > 2048 OR given !~* '^https?://(\\[[0-9a-f:.]+\\]|[^/?#@:[:space:][:cntrl:]]+)(:[0-9]{0,5})?([/?#][^[:space:][:cntrl:]]*)?$'
       OR port <> '' AND port::int NOT BETWEEN 1 AND 65535 THEN
        PERFORM holdfast.refuse('invalid_job', 'callback_url',
            holdfast.quoted(given) || ' is not a URL of http or https, without credentials, of at most 2048 characters');
    END IF;
    RETURN true;
END $$;
"""

#: The text by which a payload is known: that of `worker.ledger.canonical`, number for number.
_CANONICAL = """
CREATE FUNCTION holdfast.canonical_number(given text) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF abs(given::numeric) < 2.4703282292062328e-324 THEN
        RETURN '0';
    ELSIF abs(given::numeric) > 1.7976931348623157e308 THEN
        RETURN given;
    END IF;
    RETURN trim_scale(given::float8::text::numeric)::text;
END $$;

-- The text of a jsonb has its keys in order and its texts in one form; only numbers with a point may be written in several.
CREATE FUNCTION holdfast.canonical(payload jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    body text := payload::text;
BEGIN
    IF body !~ '[0-9]\\.[0-9]' THEN
        RETURN body;
    END IF;
    RETURN (SELECT string_agg(CASE WHEN part[1] ~ '^-?[0-9]+\\.' THEN holdfast.canonical_number(part[1]) ELSE part[1] END, '' ORDER BY place)
              FROM regexp_matches(body, '"(?:[^"\\\\]|\\\\.)*"|-?[0-9]+(?:\\.[0-9]+)?|[^"0-9-]+', 'g') WITH ORDINALITY AS found(part, place));
END $$;
"""

#: The row, of the variables of the function below.
_JOB_COLUMNS = """(id, task, queue, priority, state, message, args, kwargs, available_at, expires_at, max_attempts, caller,
                    idempotency_key, root_id, unique_key, unique_until, gate, callback_url, metadata)"""
_JOB_VALUES = """(job_id, task, coalesce(queue, kind.queue), coalesce(priority, kind.priority),
                CASE WHEN due > now THEN 'scheduled' ELSE 'queued' END, message, args_text, kwargs_text, due,
                now + expires_s * interval '1 second', coalesce(max_attempts, kind.max_attempts), caller, key, job_id,
                sole, now + unique_s * interval '1 second', line, callback_url,
                CASE WHEN jsonb_typeof(metadata) = 'object' THEN metadata END)"""

_ENQUEUE = """
CREATE FUNCTION holdfast.enqueue(
    task text, args jsonb DEFAULT '[]', kwargs jsonb DEFAULT '{{}}', queue text DEFAULT NULL, priority int DEFAULT NULL,
    delay interval DEFAULT NULL, at timestamptz DEFAULT NULL, expires interval DEFAULT NULL, max_attempts int DEFAULT NULL,
    unique_key text DEFAULT NULL, unique_for interval DEFAULT NULL, key text DEFAULT NULL, caller text DEFAULT NULL,
    callback_url text DEFAULT NULL, metadata jsonb DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET extra_float_digits = 1 AS $$
#variable_conflict use_variable
DECLARE
    kind record;
    delay_s float8 := 0;
    expires_s float8;
    unique_s float8;
    job_id text := {new_id};
    known text;
    digest bytea;
    stood_for bytea;
    body text;
    args_text text;
    kwargs_text text;
    message json;
    line text;
    due timestamptz;
    sole text;
    sound boolean;
    now timestamptz := clock_timestamp();
BEGIN
    IF task IS NULL THEN
        PERFORM holdfast.refuse('invalid_job', 'task', 'it is missing');
    END IF;
    SELECT t.queue, t.priority, t.expires_s, t.max_attempts, t.headers::text AS headers, t.arguments, t.positional, t.open_ended, t.names,
           t.queues, t.key_ttl_s, t.max_message_bytes,
           t.limited OR t.is_unique OR EXISTS (SELECT FROM {schema}.limit_policies p WHERE p.enabled AND p.kind = 'limit') AS incomplete
      INTO kind FROM {schema}.task_types t WHERE t.name = task;
    IF NOT FOUND THEN
        PERFORM holdfast.refuse('unknown_task', 'task', 'no task ' || holdfast.quoted(task) || ' is registered that makes jobs',
            'workers and relays register the tasks they know as they start');
    END IF;
    args := coalesce(args, '[]');
    kwargs := coalesce(kwargs, '{{}}');
    IF jsonb_typeof(args) <> 'array' THEN
        PERFORM holdfast.refuse('invalid_job', 'args', 'it is not a list but of type ' || jsonb_typeof(args));
    ELSIF jsonb_typeof(kwargs) <> 'object' THEN
        PERFORM holdfast.refuse('invalid_job', 'kwargs', 'it is not an object but of type ' || jsonb_typeof(kwargs));
    ELSIF queue IS NOT NULL AND NOT queue = ANY(kind.queues) THEN
        PERFORM holdfast.refuse('unknown_queue', 'queue', 'queue ' || holdfast.quoted(queue) || ' is not one of HOLDFAST_QUEUES: '
            || array_to_string(kind.queues, ', '));
    ELSIF priority NOT BETWEEN 0 AND 9 THEN
        PERFORM holdfast.refuse('invalid_job', 'priority', priority || ' is not a whole number from 0 (first) to 9 (last)');
    ELSIF delay IS NOT NULL AND at IS NOT NULL THEN
        PERFORM holdfast.refuse('invalid_job', 'at', 'give either a delay or a moment, not both');
    ELSIF at IS NOT NULL AND (NOT isfinite(at) OR at >= '9999-12-30') THEN
        PERFORM holdfast.refuse('invalid_job', 'at', at::text || ' is not a moment up to the year 9999');
    ELSIF max_attempts NOT BETWEEN 1 AND 1000000 THEN
        PERFORM holdfast.refuse('invalid_job', 'max_attempts', max_attempts || ' is not a whole number from 1 to 1000000');
    ELSIF unique_for IS NOT NULL AND unique_key IS NULL THEN
        PERFORM holdfast.refuse('invalid_job', 'unique_for', 'it goes with a unique_key');
    ELSIF jsonb_typeof(metadata) NOT IN ('object', 'null') THEN
        PERFORM holdfast.refuse('invalid_job', 'metadata', 'it is not an object but of type ' || jsonb_typeof(metadata));
    ELSIF octet_length(metadata::text) > 4096 THEN
        PERFORM holdfast.refuse('invalid_job', 'metadata', 'it takes ' || octet_length(metadata::text) || ' bytes as JSON, 4096 are allowed');
    END IF;
    IF delay IS NOT NULL THEN delay_s := holdfast.seconds('delay', delay); END IF;
    expires_s := CASE WHEN expires IS NULL THEN kind.expires_s ELSE holdfast.seconds('expires', expires) END;
    IF unique_key IS NOT NULL THEN
        sound := holdfast.check_text('unique', unique_key);
        unique_s := holdfast.seconds('unique_for', unique_for);
        sole := CASE WHEN length(unique_key) <= 100 THEN unique_key ELSE encode(sha256(convert_to(unique_key, 'UTF8')), 'hex') END;
        sole := left(task, 254 - length(sole)) || ':' || sole;
    END IF;
    IF key IS NOT NULL THEN sound := holdfast.check_text('idempotency_key', key); END IF;
    IF caller IS NOT NULL THEN sound := holdfast.check_text('caller', caller); END IF;
    IF callback_url IS NOT NULL THEN sound := holdfast.check_url(callback_url); END IF;
    args_text := args::text;
    kwargs_text := kwargs::text;
    sound := holdfast.check_arguments(task, args, kwargs, kind.arguments, kind.positional, kind.names, kind.open_ended);
    body := '[' || args_text || ', ' || kwargs_text || ', {{"callbacks": null, "errbacks": null, "chain": null, "chord": null}}]';
    IF length(body) > 400 OR strpos(body, '"__type__"') > 0 THEN
        sound := holdfast.check_readable(args, kwargs, body, kind.max_message_bytes);
    END IF;
    IF key IS NOT NULL THEN
        digest := sha256(convert_to(holdfast.canonical(jsonb_build_array(task, args, kwargs)), 'UTF8'));
        INSERT INTO {schema}.job_keys AS k (caller, key, payload_hash, job_id, expires_at)
        VALUES (coalesce(caller, ''), key, digest, job_id, clock_timestamp() + kind.key_ttl_s * interval '1 second')
        ON CONFLICT ON CONSTRAINT job_keys_pkey DO UPDATE
           SET payload_hash = excluded.payload_hash, job_id = excluded.job_id, expires_at = excluded.expires_at,
               created_at = clock_timestamp()
         WHERE k.expires_at < clock_timestamp();
        IF NOT FOUND THEN
            SELECT k.payload_hash, k.job_id INTO stood_for, known
              FROM {schema}.job_keys k WHERE k.caller = coalesce(enqueue.caller, '') AND k.key = enqueue.key;
            IF stood_for <> digest THEN
                PERFORM holdfast.refuse('idempotency_conflict', 'idempotency_key',
                    'idempotency key ' || holdfast.quoted(key) || ' was used for job ' || known || ' with another payload');
            END IF;
            RETURN known;
        END IF;
    END IF;
    args_text := CASE args_text WHEN '[]' THEN '()' ELSE '(' || left(substr(args_text, 2, length(args_text) - 2), 1022) || ')' END;
    kwargs_text := left(kwargs_text, 1024);
    message := ('{{"headers":' || left(rtrim(kind.headers), -1) || ',"group":null,"parent_id":null,"origin":"sql","id":"' || job_id || '","root_id":"' || job_id
        || '","argsrepr":' || to_json(args_text) || ',"kwargsrepr":' || to_json(kwargs_text)
        || '}},"properties":{{"correlation_id":"' || job_id || '","reply_to":""}},"body":' || to_json(body)
        || ',"content-type":"application/json","content-encoding":"utf-8"}}')::json;
    -- What only the relay can tell, the line of its limits and the task's own uniqueness, it finds out before the job is sent.
    IF kind.incomplete THEN
        line := '?';
    END IF;
    due := greatest('2000-01-01', coalesce(at, now + delay_s * interval '1 second'));
    IF sole IS NULL THEN
        INSERT INTO {schema}.jobs {columns} VALUES {values};
        RETURN job_id;
    END IF;
    FOR turn IN 1 .. 10 LOOP
        UPDATE {schema}.jobs j SET unique_key = NULL WHERE j.unique_key = sole AND j.unique_until < clock_timestamp();
        INSERT INTO {schema}.jobs {columns} VALUES {values} ON CONFLICT DO NOTHING;
        IF FOUND THEN
            RETURN job_id;
        END IF;
        -- Another active job has the unique key; or it ended in this very moment.
        SELECT j.id INTO known FROM {schema}.jobs j WHERE j.unique_key = sole;
        IF FOUND THEN
            IF key IS NOT NULL THEN
                UPDATE {schema}.job_keys k SET job_id = known WHERE k.caller = coalesce(enqueue.caller, '') AND k.key = enqueue.key;
            END IF;
            RETURN known;
        END IF;
    END LOOP;
    RAISE EXCEPTION USING ERRCODE = '40001', MESSAGE = 'the job that has this unique key came and went ten times; try again';
END $$;
"""

#: The job that tells of another's end is a row of the statement that ends it, whoever writes that. It carries what it will say,
#: so that neither a replay nor the pruning of history changes it, and its id is that of the ending: told twice, it is one.
_CALLBACK = """
CREATE FUNCTION holdfast.moment(given timestamptz) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT to_char(given AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
$$;

CREATE FUNCTION holdfast.tell_callback() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    job_id text := md5(NEW.id || ' ' || NEW.revision)::uuid;
    home text := (SELECT t.queue FROM {schema}.task_types t WHERE t.name = 'webhook.deliver');
    host text := lower((regexp_match(NEW.callback_url, '^[A-Za-z]+://(\\[[^]]*\\]|[^/?#:]+)'))[1]);
    succeeded boolean := NEW.state = 'succeeded';
    kept boolean := NEW.result IS NULL OR octet_length(NEW.result::text) <= 262144;
    payload text;
    kwargs text;
    body text;
BEGIN
    payload := json_build_object('type', 'job.' || NEW.state, 'timestamp', holdfast.moment(NEW.finished_at), 'data', json_build_object(
        'id', NEW.id, 'task', NEW.task, 'state', NEW.state,
        'result', CASE WHEN succeeded AND kept THEN NEW.result END, 'result_omitted', succeeded AND NOT kept,
        'error', left(NEW.error, 4096), 'metadata', NEW.metadata, 'attempt', NEW.attempt,
        'created_at', holdfast.moment(NEW.created_at), 'started_at', holdfast.moment(NEW.started_at),
        'finished_at', holdfast.moment(NEW.finished_at)));
    body := '[[], ' || json_build_object('url', NEW.callback_url, 'host', host, 'payload', payload)
        || ', {{"callbacks": null, "errbacks": null, "chain": null, "chord": null}}]';
    kwargs := json_build_object('host', host, 'type', 'job.' || NEW.state);
    INSERT INTO {schema}.jobs (id, task, queue, priority, state, message, kwargs, caller, parent_id, root_id, gate)
    VALUES (job_id, 'webhook.deliver', coalesce(home, NEW.queue), NEW.priority, 'queued', json_build_object(
        'headers', json_build_object('lang', 'py', 'task', 'webhook.deliver', 'id', job_id, 'root_id', coalesce(NEW.root_id, NEW.id),
            'parent_id', NEW.id, 'group', NULL, 'retries', 0, 'timelimit', json_build_array(NULL, NULL), 'origin', '', 'eta', NULL,
            'expires', NULL, 'argsrepr', '()', 'kwargsrepr', kwargs, 'ignore_result', false),
        'properties', json_build_object('correlation_id', job_id, 'reply_to', ''),
        'body', body, 'content-type', 'application/json', 'content-encoding', 'utf-8'),
        kwargs, NEW.caller, NEW.id, coalesce(NEW.root_id, NEW.id), '?')
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER job_history_callback AFTER INSERT ON job_history
    FOR EACH ROW WHEN (NEW.callback_url IS NOT NULL) EXECUTE FUNCTION holdfast.tell_callback();
"""

#: Nobody may call anything here but its owner, and the role the one function.
_RIGHTS = """
REVOKE ALL ON SCHEMA holdfast FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA holdfast FROM PUBLIC;
"""
_MAKE_ROLE = f"""
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') THEN
        CREATE ROLE {ROLE} NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN  -- another database of this server is being migrated right now
    NULL;
END $$
"""
_GRANT = f"""
GRANT USAGE ON SCHEMA holdfast TO {ROLE};
GRANT EXECUTE ON FUNCTION holdfast.enqueue TO {ROLE};
"""

#: A user called like this schema finds it before any other: what it makes without naming a schema would land here.
_PATH = """
DO $$
BEGIN
    IF current_user = 'holdfast' THEN
        EXECUTE 'ALTER ROLE holdfast IN DATABASE ' || quote_ident(current_database()) || ' SET search_path = {schema}';
    END IF;
END $$
"""


def upgrade() -> None:
    """Create it all.

    The release before ends jobs as ever: those without a callback, which are all it knows, never reach the trigger's function.
    """
    conn = op.get_bind()
    version = int(conn.execute(text("SHOW server_version_num")).scalar_one())
    schema = conn.execute(text("SELECT quote_ident(current_schema())")).scalar_one()
    names = {
        "schema": schema,
        "columns": _JOB_COLUMNS,
        "values": _JOB_VALUES,
        "new_id": "uuidv7()::text" if version >= 180000 else _UUID7,
    }
    run = conn.exec_driver_sql
    run(_COLUMNS)
    run("CREATE SCHEMA holdfast")
    for part in (_REFUSE, _CHECK, _CANONICAL):
        run(part)
    run(_ENQUEUE.format(**names))
    run(_CALLBACK.format(**names))
    run(_RIGHTS)
    run(_PATH.format(schema=schema))
    may = conn.execute(text("SELECT rolsuper OR rolcreaterole OR EXISTS (SELECT FROM pg_roles WHERE rolname = :role) "
                            "FROM pg_roles WHERE rolname = current_user"), {"role": ROLE}).scalar_one()  # fmt: skip
    if may:
        run(_MAKE_ROLE)
        run(_GRANT)
    else:
        logger.warning("role %s is not made: this user may not create roles. Let a superuser run: CREATE ROLE %s NOLOGIN;%s",
                       ROLE, ROLE, " ".join(_GRANT.split("\n")))  # fmt: skip


#: Before Postgres 18: 48 bits of milliseconds, then random, as `worker.clock.uuid7`.
_UUID7 = """overlay(overlay(replace(gen_random_uuid()::text, '-', '')
        PLACING lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') FROM 1) PLACING '7' FROM 13)::uuid::text"""


def downgrade() -> None:
    """Drop it. The role stays: other databases of the server may use it."""
    op.execute("DROP TRIGGER job_history_callback ON job_history")
    op.execute("DROP SCHEMA holdfast CASCADE")
    op.execute(_DROP_COLUMNS)
