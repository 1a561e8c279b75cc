"""The SQL door: `holdfast.enqueue` accepts what the other doors accept, refuses as they do, and its role can do nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tuned
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from tests import sample_tasks as tasks
from tests.integration.conftest import Bench
from worker.app import app
from worker.engine.calls import new_job, read_call
from worker.engine.registry import register_tasks
from worker.engine.relay import Relay
from worker.errors import HoldfastError, IdempotencyConflict
from worker.ledger import manage
from worker.ledger.accept import payload_hash
from worker.ledger.canonical import canonical

Conn = psycopg.Connection[Any]
ADD = "tests.sample_tasks.add"
ECHO = "tests.sample_tasks.echo"

#: How the fields of `read_call` are called as parameters of the function.
_PARAMETERS = {"idempotency_key": "key", "unique": "unique_key"}


@app.task(name="sql.typed")
def typed(number: int, name: str, maybe: float | None = None, *, items: list[int] | None = None) -> None:
    pass


@pytest.fixture
def door(db: Conn, relay: Relay) -> Conn:
    """A connection to a database in which the tasks are registered."""
    app.finalize()
    register_tasks(app)
    return db


@pytest.fixture
def visitor(door: Conn, env: dict[str, str]) -> Iterator[Conn]:
    """A connection of a user that has the role and nothing else."""
    with psycopg.connect(env["DATABASE_URL"], autocommit=True) as conn:
        conn.execute("SET SESSION AUTHORIZATION holdfast_enqueuer")
        yield conn


def enqueue(conn: Conn, task: str | None = ADD, **given: Any) -> str:
    """Call the function with the fields of a call."""
    values = {
        _PARAMETERS.get(name, name): Jsonb(value) if isinstance(value, dict | list) else value for name, value in given.items()
    }
    kinds = {"delay": "interval", "expires": "interval", "unique_for": "interval", "at": "timestamptz"}
    named = "".join(f", {name} => %({name})s{'::' + kinds[name] if name in kinds else ''}" for name in values)
    row = conn.execute(f"SELECT holdfast.enqueue(%(the_task)s::text{named})", {**values, "the_task": task}).fetchone()
    assert row is not None
    return str(row[0])


def enqueue_many(conn: Conn, calls: list[Any] | None, task: str | None = ADD, **given: Any) -> list[str]:
    """Call the function for many calls of one task."""
    values = {**given, "the_task": task, "calls": calls and [Jsonb(call) for call in calls]}
    named = "".join(f", {name} => %({name})s" for name in given)
    sql = f"SELECT * FROM holdfast.enqueue_many(%(the_task)s::text, %(calls)s::jsonb[]{named})"
    return [row[0] for row in conn.execute(sql, values).fetchall()]


def refusal(conn: Conn, task: str | None = ADD, **given: Any) -> tuple[str, str]:
    """Return code and field of the error that a call meets."""
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        enqueue(conn, task, **given)
    told = json.loads(caught.value.diag.message_detail or "")
    return told["code"], told["field"]


def rows(conn: Conn) -> int:
    (count,) = conn.execute("SELECT count(*) FROM jobs").fetchone() or (0,)
    return int(count)


# ---- what it accepts


def test_job_of_sql_runs_and_succeeds(door: Conn, relay: Relay, bench: Bench) -> None:
    job_id = enqueue(door, args=[1], kwargs={"y": 2}, caller="billing", priority=3, metadata={"order": 7}, max_attempts=4)
    assert UUID(job_id).version == 7
    relay.round()
    assert bench.work() == [job_id]
    found = manage.show(door, job_id)
    assert (found["state"], found["result"]) == ("succeeded", 3)
    kept = {name: found[name] for name in ("caller", "priority", "metadata", "max_attempts", "args", "kwargs", "queue")}
    assert kept == {"caller": "billing", "priority": 3, "metadata": {"order": 7}, "max_attempts": 4, "args": "(1)",
                    "kwargs": '{"y": 2}', "queue": "default"}  # fmt: skip


def test_row_of_sql_says_what_a_row_of_python_says(door: Conn) -> None:
    by_sql = door.execute("SELECT * FROM jobs WHERE id = %s", (enqueue(door, args=[1, 2]),)).fetchone()
    by_python = door.execute("SELECT * FROM jobs WHERE id = %s", (tasks.add.delay(1, 2).id,)).fetchone()
    names = [c.name for c in door.execute("SELECT * FROM jobs LIMIT 0").description or ()]
    sql, python = (dict(zip(names, row or (), strict=True)) for row in (by_sql, by_python))
    own = {"id", "root_id", "message", "args", "created_at", "available_at", "dispatch_epoch", "dispatched_at"}
    assert {n: v for n, v in sql.items() if n not in own} == {n: v for n, v in python.items() if n not in own}
    assert json.loads(sql["message"]["body"]) == json.loads(python["message"]["body"])
    assert sql["message"]["properties"].keys() == python["message"]["properties"].keys()


def test_job_exists_if_and_only_if_the_callers_transaction_commits(door: Conn) -> None:
    with door.transaction():
        enqueue(door, args=[1, 2])
        raise psycopg.Rollback
    assert rows(door) == 0
    with door.transaction():
        enqueue(door, args=[1, 2])
    assert rows(door) == 1


def test_trigger_of_a_team_enqueues_with_the_row_that_sets_it_off(door: Conn) -> None:
    door.execute("""
        CREATE TABLE orders (id int);
        CREATE FUNCTION on_order() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM holdfast.enqueue('tests.sample_tasks.add', jsonb_build_array(NEW.id, 1));
            RETURN NEW;
        END $$;
        CREATE TRIGGER on_order AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION on_order()
    """)
    door.execute("INSERT INTO orders SELECT * FROM generate_series(1, 3)")
    assert rows(door) == 3


def test_delay_expiry_and_moment_are_counted_by_the_server(door: Conn) -> None:
    sql = "SELECT state, available_at - created_at, expires_at - created_at FROM jobs WHERE id = %s"
    state, wait, life = door.execute(sql, (enqueue(door, args=[1, 2], delay="90 s", expires="1 hour"),)).fetchone() or ()
    assert (state, round(wait.total_seconds()), round(life.total_seconds())) == ("scheduled", 90, 3600)
    state, *_ = door.execute(sql, (enqueue(door, args=[1, 2], at="2001-01-01 00:00+00"),)).fetchone() or ()
    assert state == "queued"


# ---- many at once


def test_many_calls_are_jobs_in_their_order_and_run(door: Conn, relay: Relay, bench: Bench) -> None:
    calls: list[Any] = [[1, 2], {"x": 3, "y": 4}, [5, 6]]
    ids = enqueue_many(door, calls, priority=2, caller="billing")
    assert [UUID(job_id).version for job_id in ids] == [7, 7, 7]
    relay.round()
    assert sorted(bench.work()) == sorted(ids)
    found = [manage.show(door, job_id) for job_id in ids]
    told = [(it["result"], it["priority"], it["caller"]) for it in found]
    assert told == [(3, 2, "billing"), (7, 2, "billing"), (11, 2, "billing")]


@pytest.mark.parametrize("call", [[1, 2], {"x": "é\"\\\n", "y": None}, ["x" * 2000, {"a": [1.5]}]])
def test_row_of_many_is_the_row_of_one(door: Conn, call: Any) -> None:
    given = {"kwargs": call} if isinstance(call, dict) else {"args": call}
    one = enqueue(door, ECHO, **given, caller="c")
    (many,) = enqueue_many(door, [call], ECHO, caller="c")
    sql = "SELECT (to_jsonb(j) - '{id,created_at,available_at}'::text[])::text FROM jobs j WHERE id = %s"
    told = [str((door.execute(sql, (job_id,)).fetchone() or ("",))[0]).replace(job_id, "ID") for job_id in (one, many)]
    assert told[0] == told[1]


def test_no_calls_are_no_jobs(door: Conn) -> None:
    assert enqueue_many(door, None) == enqueue_many(door, []) == []
    assert rows(door) == 0


def test_expiry_and_attempts_of_the_task_are_those_of_many(door: Conn) -> None:
    door.execute("UPDATE task_types SET expires_s = 60, max_attempts = 3 WHERE name = %s", (ADD,))
    enqueue_many(door, [[1, 2]])
    row = door.execute("SELECT extract(epoch FROM expires_at - available_at)::int, max_attempts FROM jobs").fetchone()
    assert row == (60, 3)


def test_many_calls_do_not_pass_their_limits(door: Conn, relay: Relay, bench: Bench) -> None:
    enqueue_many(door, [{"tenant": "t", "number": number} for number in range(60)], "tests.sample_tasks.metered")
    for _ in range(3):
        relay.round()
    assert 0 < len(bench.ids()) <= 25


@pytest.mark.parametrize("wrong", [
    [1, 2, 3], [1], {"x": 1}, {"x": 1, "y": 2, "z": 3}, [1, "x" * 1_100_000],
])  # fmt: skip
def test_one_wrong_call_refuses_all_and_is_named(door: Conn, wrong: Any) -> None:
    code, field = refusal(door, **({"kwargs": wrong} if isinstance(wrong, dict) else {"args": wrong}))
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        enqueue_many(door, [[1, 2], wrong, [3, 4]])
    assert json.loads(caught.value.diag.message_detail or "") == {"code": code, "field": f"calls.1.{field}"}
    assert str(caught.value.diag.message_primary).startswith(f"calls.1.{field}: ")
    assert rows(door) == 0


@pytest.mark.parametrize("wrong", [
    {"task": None}, {"task": "nowhere.to_be_found"}, {"task": "tests.sample_tasks.plain"}, {"queue": "nowhere"}, {"priority": 10},
    {"caller": ""},
])  # fmt: skip
def test_what_is_wrong_of_all_calls_is_told_as_of_one(door: Conn, wrong: dict[str, Any]) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        enqueue_many(door, [[1, 2]], **wrong)
    told = json.loads(caught.value.diag.message_detail or "")
    assert (told["code"], told["field"]) == refusal(door, **{"args": [1, 2], **wrong})
    assert rows(door) == 0


def test_call_that_is_neither_list_nor_object_is_refused_by_its_place(door: Conn) -> None:
    for call in ("1", '"x"', "null"):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"calls\.1\.args: it is neither a list nor an object"):
            door.execute("SELECT holdfast.enqueue_many(%s, ARRAY['[1, 2]', %s]::jsonb[])", (ADD, call))
    for text in ("[" * 3000 + "]" * 3000, "[1e5000]", '[{"__type__": "x", "__value__": 1}]'):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"^calls\.0\.args: "):
            door.execute("SELECT holdfast.enqueue_many(%s, ARRAY[%s]::jsonb[])", (ECHO, text))
    assert rows(door) == 0


# ---- what it refuses, as the other doors do

WRONG: dict[str, dict[str, Any]] = {
    "no task": {"task": None},
    "unknown task": {"task": "nowhere.to_be_found"},
    "task of Celery's own": {"task": "celery.chord"},
    "task without rows": {"task": "tests.sample_tasks.plain", "args": [1]},
    "task with a quote": {"task": "x'); DROP TABLE jobs; --"},
    "args that are no list": {"args": {"x": 1}},
    "kwargs that are no object": {"kwargs": [1]},
    "too many arguments": {"args": [1, 2, 3]},
    "unknown argument": {"args": [1, 2], "kwargs": {"z": 3}},
    "argument given twice": {"args": [1, 2], "kwargs": {"x": 3}},
    "missing argument": {"args": [1]},
    "text for a number": {"task": "sql.typed", "args": ["one", "two"]},
    "fraction for a whole number": {"task": "sql.typed", "args": [1.5, "two"]},
    "null for a text": {"task": "sql.typed", "args": [1], "kwargs": {"name": None}},
    "text in a union": {"task": "sql.typed", "args": [1, "two", "three"]},
    "object for a list": {"task": "sql.typed", "args": [1, "two"], "kwargs": {"items": {}}},
    "unknown queue": {"args": [1, 2], "queue": "nowhere"},
    "priority above": {"args": [1, 2], "priority": 10},
    "priority below": {"args": [1, 2], "priority": -1},
    "negative delay": {"args": [1, 2], "delay": "-1 s"},
    "delay of ages": {"args": [1, 2], "delay": "200 years"},
    "negative expiry": {"args": [1, 2], "expires": "-1 s"},
    "delay and moment": {"args": [1, 2], "delay": "1 s", "at": "2030-01-01 00:00+00"},
    "no attempts": {"args": [1, 2], "max_attempts": 0},
    "empty key": {"args": [1, 2], "idempotency_key": ""},
    "long key": {"args": [1, 2], "idempotency_key": "k" * 256},
    "empty caller": {"args": [1, 2], "caller": ""},
    "empty unique": {"args": [1, 2], "unique": ""},
    "unique_for alone": {"args": [1, 2], "unique_for": "10 s"},
    "metadata that is no object": {"args": [1, 2], "metadata": [1]},
    "large metadata": {"args": [1, 2], "metadata": {"a": "x" * 5000}},
    "callback by ftp": {"args": [1, 2], "callback_url": "ftp://example.com/"},
    "callback with a password": {"args": [1, 2], "callback_url": "https://me:secret@example.com/"},
    "callback without a host": {"args": [1, 2], "callback_url": "https:///hook"},
    "callback with a port too high": {"args": [1, 2], "callback_url": "https://example.com:70000/"},
    "callback with a line break": {"args": [1, 2], "callback_url": "https://example.com/\nX: y"},
    "long callback": {"args": [1, 2], "callback_url": "https://example.com/" + "x" * 2048},
    "large arguments": {"args": [1, "x" * 1_100_000]},
}


def python_refusal(task: str | None = ADD, **given: Any) -> tuple[str, str]:
    seconds = {"-1 s": -1, "1 s": 1, "10 s": 10, "200 years": 200 * 366 * 86_400}
    values = {name: seconds.get(value, value) if isinstance(value, str) else value for name, value in given.items()}
    with pytest.raises(HoldfastError) as caught:
        new_job(app, read_call({"task": task, **values}))
    return caught.value.code, caught.value.field  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_told_with_the_code_and_field_of_every_door(door: Conn, wrong: str) -> None:
    assert refusal(door, **WRONG[wrong]) == python_refusal(**WRONG[wrong])
    assert rows(door) == 0


@pytest.mark.parametrize(
    "url", ["http://example.com", "HTTPS://Example.com:8443/a?b=c#d", "http://[::1]:80/x", "http://10.0.0.1"]
)
def test_callback_url_that_other_doors_take_is_taken(door: Conn, url: str) -> None:
    read_call({"task": ADD, "callback_url": url})
    enqueue(door, args=[1, 2], callback_url=url)


def test_error_says_which_task_is_unknown_and_what_to_do(door: Conn) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=r'no task "nowhere\.to" is registered') as caught:
        enqueue(door, "nowhere.to")
    assert "register" in str(caught.value.diag.message_hint)


def test_text_cannot_leave_its_place_in_a_message(door: Conn) -> None:
    evil = "\"}\n'); DROP TABLE jobs; -- \\u0000 \x1b[31m"
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        enqueue(door, evil)
    assert "\n" not in str(caught.value.diag.message_primary)
    assert "\x1b" not in str(caught.value.diag.message_primary)
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        enqueue(door, args=[1, 2], kwargs={evil: 1})
    assert "\n" not in str(caught.value.diag.message_primary)
    assert json.loads(str(caught.value.diag.message_detail))["field"] == f"kwargs.{evil}"
    job_id = enqueue(door, ECHO, args=[evil], kwargs={evil: evil}, caller=evil[:50], metadata={evil: evil})
    found = manage.show(door, job_id)
    assert json.loads(found["message"]["body"])[:2] == [[evil], {evil: evil}]
    assert (found["caller"], found["metadata"]) == (evil[:50], {evil: evil})
    assert json.loads(json.dumps(found["message"]))["headers"]["id"] == job_id


def test_what_postgres_cannot_hold_is_refused_before_the_door(door: Conn) -> None:
    for text in ('["\\u0000", 1]', '["\\ud800", 1]', "[NaN, 1]", "[1, 2"):
        with pytest.raises(psycopg.DataError):
            door.execute("SELECT holdfast.enqueue(%s, %s::jsonb)", (ADD, text))
    assert rows(door) == 0


def test_json_bombs_are_refused(door: Conn) -> None:
    for text in ("[" * 3000 + "]" * 3000, '["' + "x" * 100_000_000 + '"]', "[1e5000]", '[{"__type__": "x", "__value__": 1}]'):
        with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
            door.execute("SELECT holdfast.enqueue(%s, %s::jsonb)", (ECHO, text))
        assert len(str(caught.value)) < 1000
    assert rows(door) == 0


# ---- keys


def test_same_key_is_the_same_job_through_both_doors(door: Conn) -> None:
    by_sql = enqueue(door, ECHO, args=[1, 2.0], kwargs={"é": 0.5, "a": [1e22]}, idempotency_key="a", caller="c")
    assert enqueue(door, ECHO, args=[1, 2], kwargs={"a": [10**22], "é": 0.50}, idempotency_key="a", caller="c") == by_sql
    assert tasks.echo.apply_async((1.0, 2), {"é": 0.5, "a": [1e22]}, idempotency_key="a", caller="c").id == by_sql
    by_python = tasks.add.apply_async((3, 4), idempotency_key="b").id
    assert enqueue(door, args=[3, 4], idempotency_key="b") == by_python
    assert rows(door) == 2


def test_key_with_another_payload_is_a_conflict_through_both_doors(door: Conn) -> None:
    enqueue(door, args=[1, 2], idempotency_key="a")
    assert refusal(door, args=[1, 3], idempotency_key="a") == ("idempotency_conflict", "idempotency_key")
    with pytest.raises(IdempotencyConflict):
        tasks.add.apply_async((1, 3), idempotency_key="a")
    assert enqueue(door, args=[1, 3], idempotency_key="a", caller="another") != ""


def test_key_is_free_again_when_its_time_is_over(door: Conn) -> None:
    first = enqueue(door, args=[1, 2], idempotency_key="a")
    door.execute("UPDATE job_keys SET expires_at = clock_timestamp() - interval '1 s'")
    assert enqueue(door, args=[1, 3], idempotency_key="a") != first


def test_unique_job_is_found_through_both_doors(door: Conn) -> None:
    first = enqueue(door, args=[1, 2], unique="report", idempotency_key="k")
    assert enqueue(door, args=[8, 9], unique="report") == first
    job = new_job(app, read_call({"task": ADD, "args": [5, 6], "unique": "report"}))
    assert door.execute("SELECT unique_key FROM jobs").fetchone() == (job.unique_key,)
    long = enqueue(door, args=[1, 2], unique="r" * 200)
    assert enqueue(door, args=[1, 2], unique="r" * 200) == long
    job = new_job(app, read_call({"task": ADD, "args": [5, 6], "unique": "r" * 200}))
    assert door.execute("SELECT unique_key FROM jobs WHERE id = %s", (long,)).fetchone() == (job.unique_key,)


_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
_number = st.integers() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False)
_json = st.recursive(
    st.none() | st.booleans() | _number | _text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=12,
)


@tuned(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=_json)
def test_canonical_text_of_sql_is_that_of_python(db: Conn, value: Any) -> None:
    text = json.dumps(value)
    assert db.execute("SELECT holdfast.canonical(%s::jsonb)", (text,)).fetchone() == (canonical(json.loads(text)),)


@pytest.mark.parametrize("text", ["1", "1.0", "1e0", "1.00", "100e-2", "0.1e1"])
def test_number_has_one_canonical_text_however_it_is_written(db: Conn, text: str) -> None:
    assert db.execute("SELECT holdfast.canonical(%s::jsonb)", (text,)).fetchone() == ("1",)
    assert canonical(json.loads(text)) == "1"


ODD = ("-0.0", "1e22", "1e23", "5e-324", "1e-400", "1.7976931348623157e308", "0.1", "123456789012345678901.5", '"1.0"',
       '["\\u00e9\\u007f\\/", "\\b\\f\\u0001", {"bb": 1.50, "a": "2.0", "\\"1.0\\"": 0}]')  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_odd_values_have_the_same_canonical_text_on_both_sides(db: Conn, text: str) -> None:
    assert db.execute("SELECT holdfast.canonical(%s::jsonb)", (text,)).fetchone() == (canonical(json.loads(text)),)


def test_digest_of_sql_is_that_of_an_accepted_call(door: Conn) -> None:
    enqueue(door, ECHO, args=[1, 2.5], kwargs={}, idempotency_key="k")
    job = new_job(app, read_call({"task": ECHO, "args": [1, 2.5]}))
    assert door.execute("SELECT payload_hash FROM job_keys").fetchone() == (payload_hash(job),)


# ---- limits and the task's own uniqueness


def test_job_of_sql_does_not_pass_its_limits(door: Conn, relay: Relay, bench: Bench) -> None:
    for number in range(60):
        enqueue(door, "tests.sample_tasks.metered", kwargs={"tenant": "t", "number": number})
    for _ in range(3):
        relay.round()
    assert len(bench.ids()) <= 25
    gates = {row[0] for row in door.execute("SELECT DISTINCT gate FROM jobs").fetchall()}
    assert len(gates) == 1
    assert json.loads(gates.pop())[0][:2] == ["tenant", "t"]


def test_policy_set_by_people_holds_for_jobs_of_sql(door: Conn, relay: Relay, bench: Bench) -> None:
    from worker.ledger import limits
    from worker.limits.policy import parse_policy

    limits.put(door, parse_policy("all {task} 1/hour"))
    for _ in range(5):
        enqueue(door, args=[1, 2])
    relay.round()
    assert len(bench.ids()) == 1


def test_job_without_limits_is_sent_without_being_looked_at(door: Conn) -> None:
    enqueue(door, args=[1, 2])
    assert door.execute("SELECT gate FROM jobs").fetchone() == (None,)


def test_task_that_is_unique_is_so_for_jobs_of_sql(door: Conn, relay: Relay, bench: Bench) -> None:
    first = enqueue(door, "tests.sample_tasks.unique", args=[1])
    relay.round()
    second = enqueue(door, "tests.sample_tasks.unique", args=[1])
    relay.round()
    assert tasks.unique.delay(1).id == first
    assert bench.ids() == [first]
    assert (manage.show(door, second)["state"], first in manage.show(door, second)["error"]) == ("cancelled", True)


def test_row_that_its_task_cannot_name_holds_up_no_other(door: Conn, relay: Relay, bench: Bench) -> None:
    broken = enqueue(door, "tests.sample_tasks.unique_on_parity", args=[1, "a"])
    door.execute("UPDATE jobs SET message = replace(message::text, '[1, \\\"a\\\"]', '[\\\"x\\\", 7]')::json")
    other = enqueue(door, args=[1, 2])
    relay.round()
    assert bench.ids() == [other]
    found = manage.show(door, broken)
    assert (found["state"], "unique_on cannot name this call" in found["error"]) == ("discarded", True)


def test_job_of_a_task_this_relay_does_not_know_waits_for_one_that_does(door: Conn, relay: Relay, bench: Bench) -> None:
    copy = """INSERT INTO task_types SELECT (jsonb_populate_record(t, '{"name": "elsewhere.task", "limited": true}')).*
                FROM task_types t WHERE name = %s"""
    door.execute(copy, (ADD,))
    enqueue(door, "elsewhere.task", args=[1, 2])
    other = enqueue(door, args=[1, 2])
    relay.round()
    assert bench.ids() == [other]
    assert rows(door) == 2


# ---- the role


def test_role_may_enqueue(visitor: Conn) -> None:
    assert enqueue(visitor, args=[1, 2])
    assert len(enqueue_many(visitor, [[1, 2], [3, 4]])) == 2


def test_role_may_do_nothing_else(visitor: Conn, door: Conn) -> None:
    tables = [row[0] for row in door.execute(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'public'").fetchall()]  # fmt: skip
    assert len(tables) > 15
    for table in tables:
        for statement in (f"SELECT * FROM {table}", f"DELETE FROM {table}", f"INSERT INTO {table} DEFAULT VALUES",
                          f"TRUNCATE {table}", f"ALTER TABLE {table} ADD x int", f"DROP TABLE {table}"):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                visitor.execute(statement)


def test_role_may_call_no_other_function_of_ours(visitor: Conn) -> None:
    may = visitor.execute("""
        SELECT p.oid::regproc::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
         WHERE n.nspname = 'holdfast' AND has_function_privilege(current_user, p.oid, 'EXECUTE')
    """).fetchall()
    assert sorted(may) == [("holdfast.enqueue",), ("holdfast.enqueue_many",)]
    for statement in ("CREATE FUNCTION holdfast.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
                      "CREATE TABLE holdfast.mine (x int)",
                      "SELECT holdfast.refuse('a', 'b', 'c')", "CREATE TABLE public.mine (x int)",
                      "ALTER FUNCTION holdfast.enqueue RESET search_path"):  # fmt: skip
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            visitor.execute(statement)


def test_everybody_else_may_not_enqueue(door: Conn, env: dict[str, str]) -> None:
    door.execute("DROP ROLE IF EXISTS stranger")
    door.execute("CREATE ROLE stranger")
    with psycopg.connect(env["DATABASE_URL"], autocommit=True) as conn:
        conn.execute("SET SESSION AUTHORIZATION stranger")
        for call in (enqueue, lambda conn, args: enqueue_many(conn, [args])):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                call(conn, args=[1, 2])
    door.execute("DROP ROLE stranger")


def test_search_path_of_the_caller_is_not_believed(visitor: Conn, door: Conn) -> None:
    """Tables and functions of the caller's own, which would run with the owner's rights, are not found."""
    visitor.execute("CREATE TEMP TABLE task_types (name text, queue text)")
    visitor.execute("CREATE TEMP TABLE jobs (id text)")
    visitor.execute("""CREATE FUNCTION pg_temp.length(text) RETURNS int LANGUAGE plpgsql AS
                       $$ BEGIN RAISE EXCEPTION 'caught as %', current_user; END $$""")
    visitor.execute("""CREATE FUNCTION pg_temp.jsonb_typeof(jsonb) RETURNS text LANGUAGE plpgsql AS
                       $$ BEGIN RAISE EXCEPTION 'caught as %', current_user; END $$""")
    visitor.execute("SET search_path = pg_temp, pg_catalog")
    enqueue(visitor, args=[1, 2], idempotency_key="k", unique="u")
    enqueue_many(visitor, [[1, 2], {"x": "y" * 500}], ECHO)
    assert rows(door) == 3


@pytest.mark.parametrize("name", ["holdfast.enqueue", "holdfast.enqueue_many", "holdfast.tell_callback"])
def test_function_that_is_entered_from_outside_pins_its_search_path(db: Conn, name: str) -> None:
    (conf,) = db.execute("SELECT proconfig FROM pg_proc WHERE oid = %s::regproc", (name,)).fetchone() or ([],)
    assert "search_path=pg_catalog, pg_temp" in conf


def test_migrator_that_may_make_no_role_still_migrates(stack: Any, caplog: pytest.LogCaptureFixture) -> None:
    from tests.harness import create_database, drop_database
    from worker.db import upgrade

    url = create_database(stack.postgres.url, "plain_owner")
    try:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("CREATE ROLE plain LOGIN")
            conn.execute("ALTER SCHEMA public OWNER TO plain; GRANT CREATE ON DATABASE plain_owner TO plain")
        head, sep, tail = url.partition("?")
        mine = f"{head}{sep or '?'}{tail}{'&' if tail else ''}options=-c%20role%3Dplain"
        upgrade(mine)
        with psycopg.connect(mine, autocommit=True) as conn:
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                conn.execute("SELECT holdfast.enqueue('nowhere')")
    finally:
        drop_database(stack.postgres.url, "plain_owner")
        with psycopg.connect(stack.postgres.url, autocommit=True) as conn:
            conn.execute("DROP ROLE IF EXISTS plain")
