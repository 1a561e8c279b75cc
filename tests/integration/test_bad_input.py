"""Bad input: one clear line that names what was wrong, nothing lost and nothing accepted."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from celery import chain, group

from tests import harness
from tests.harness import create_database, drop_database, forget
from tests.integration.conftest import Bench
from tests.sample_tasks import add, echo, noop, plain, unique
from worker.app import app, enqueue_in, enqueue_many
from worker.db import check_schema, session
from worker.embedded import Stack
from worker.engine.signals import _check_and_register
from worker.errors import (
    HoldfastError,
    InvalidJob,
    JobNotFound,
    LedgerUnavailable,
    MessageTooLarge,
    NotInJob,
    SchemaOutdated,
    SettingsError,
    UnknownQueue,
)  # fmt: skip
from worker.ledger import manage
from worker.settings import Settings, read_settings
from worker.store.client import check_policy

Conn = psycopg.Connection[Any]
HOUR = 3600


@app.task(unique_for=60, unique_on=str)
def unique_on_all(text: str) -> str:
    return text


@app.task(unique_for=60)
def echoed(text: str) -> str:
    return text


@app.task(unique_for=60, name="n" * 250)
def named_at_length(n: int) -> int:
    return n


@app.task(time_limit="soon")
def limited_in_words() -> None:
    pass


CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "unknown queue": (lambda: add.apply_async((1, 2), queue="nowhere"), UnknownQueue, "'nowhere'.*HOLDFAST_QUEUES: default"),
    "unknown queue by send_task": (lambda: app.send_task("any", queue="nowhere"), UnknownQueue, "'nowhere'"),
    "unknown queue in a group": (lambda: group(add.s(1, 2), add.s(1, 2).set(queue="nowhere"))(), UnknownQueue, "'nowhere'"),
    "unknown queue for many": (lambda: enqueue_many(add, [(1, 2)], queue="nowhere"), UnknownQueue, "'nowhere'"),
    "an object": (
        lambda: echo.delay(object()),
        InvalidJob,
        "tests.sample_tasks.echo: the arguments cannot be written as JSON.*object",
    ),
    "a function": (lambda: echo.delay(key=print), InvalidJob, "tests.sample_tasks.echo: .*builtin_function"),
    "an endless list": (lambda: echo.delay(_endless()), InvalidJob, "tests.sample_tasks.echo: .*JSON"),
    "an object in a link": (
        lambda: add.apply_async((1, 2), link=echo.s(object())),
        InvalidJob,
        "tests.sample_tasks.add: .*object",
    ),
    "an object in a chain": (
        lambda: chain(add.s(1, 2), echo.s(object())).delay(),
        InvalidJob,
        "tests.sample_tasks.add: .*object",
    ),
    "an object in a group": (lambda: group(add.s(1, 2), echo.s(object()))(), InvalidJob, "tests.sample_tasks.echo: .*object"),
    "an object in a header": (
        lambda: add.apply_async((1, 2), headers={"x-test": object()}),
        InvalidJob,
        "tests.sample_tasks.add: .*header",
    ),
    "half a surrogate in a header": (
        lambda: add.apply_async((1, 2), headers={"x-test": "\ud800"}),
        InvalidJob,
        "sample_tasks.add: .*header",
    ),
    "what looks like Celery's JSON for a type": (
        lambda: echo.delay({"__type__": "decimal", "__value__": "no number"}),
        InvalidJob,
        "tests.sample_tasks.echo: .*__type__",
    ),
    "a megabyte": (
        lambda: echo.delay("x" * 1_048_576),
        MessageTooLarge,
        r"tests.sample_tasks.echo: .*1,048,6\d\d bytes.*1,048,576 ",
    ),
    "a megabyte among many": (lambda: enqueue_many(echo, [("x",), ("x" * 1_048_576,)]), MessageTooLarge, "row 1"),
    "an eta that is no time": (
        lambda: add.apply_async((1, 2), eta="tomorrow"),
        InvalidJob,
        "eta: 'tomorrow' is not a time; write it like",
    ),
    "expires that is no time": (
        lambda: add.apply_async((1, 2), expires="soon"),
        InvalidJob,
        "expires: 'soon' is not a time; write it like",
    ),
    "an eta that is no text": (lambda: add.apply_async((1, 2), eta=object()), InvalidJob, "eta: .*object"),
    "an endless countdown": (
        lambda: add.apply_async((1, 2), countdown=1e15),
        InvalidJob,
        "countdown: 1000000000000000.0 seconds is not within",
    ),
    "a countdown in words": (lambda: add.apply_async((1, 2), countdown="soon"), InvalidJob, "countdown: 'soon'"),
    "no priority": (lambda: add.apply_async((1, 2), priority=10), InvalidJob, "priority 10 is not a whole number from 0"),
    "a priority in words": (lambda: add.apply_async((1, 2), priority="high"), InvalidJob, "priority 'high'"),
    "a priority for many": (lambda: enqueue_many(add, [(1, 2)], priority=-1), InvalidJob, "priority -1"),
    "pickle": (
        lambda: add.apply_async((1, 2), serializer="pickle"),
        InvalidJob,
        "tests.sample_tasks.add: serializer 'pickle'.*JSON only",
    ),
    "many of a unique task": (lambda: enqueue_many(unique, [(1,)]), InvalidJob, "sample_tasks.unique: enqueue_many .*unique_for"),
    "many of a task without a row": (
        lambda: enqueue_many(plain, [(1,)]),
        InvalidJob,
        "sample_tasks.plain: enqueue_many .*durable",
    ),
    "no task name": (lambda: app.send_task(""), InvalidJob, "task name ''"),
    "a task name that is no text": (lambda: app.send_task(5), InvalidJob, "task name 5"),
    "an id that is no text": (lambda: add.apply_async((1, 2), task_id=5), InvalidJob, "task_id 5"),
    "a zero byte in an id": (lambda: add.apply_async((1, 2), task_id="a\0b"), InvalidJob, "task_id"),
    "arguments that do not fit a unique task": (
        lambda: unique.delay(nothing=1),
        InvalidJob,
        "tests.sample_tasks.unique: missing a required argument: 'x'",
    ),
    "a key that is no text": (lambda: add.apply_async((1, 2), idempotency_key=5), InvalidJob, "idempotency_key 5"),
    "a zero byte in a key": (lambda: add.apply_async((1, 2), idempotency_key="a\0b"), InvalidJob, "idempotency_key"),
    "an id that is too long": (lambda: add.apply_async((1, 2), task_id="x" * 256), InvalidJob, "task_id 'xxx.* of 1 to 255 char"),
    "a key that is too long": (
        lambda: add.apply_async((1, 2), idempotency_key="x" * 256),
        InvalidJob,
        "idempotency_key 'xxx.* of 1 to 255 characters",
    ),
    "an empty key": (lambda: add.apply_async((1, 2), idempotency_key=""), InvalidJob, "idempotency_key ''"),
    "a caller that is too long": (
        lambda: add.apply_async((1, 2), idempotency_key="x", caller="x" * 256),
        InvalidJob,
        "caller 'xxx.* of 1 to 255 characters",
    ),
    "a caller that is too long, for many": (lambda: enqueue_many(add, [(1, 2)], caller="x" * 256), InvalidJob, "caller 'xxx"),
    "a key that is too long in a group": (
        lambda: group(add.s(1, 2), add.s(1, 2).set(idempotency_key="x" * 256))(),
        InvalidJob,
        "idempotency_key 'xxx",
    ),
    "a unique key that is too long": (
        lambda: add.apply_async((1, 2), unique_key="x" * 256, unique_for_s=9.0),
        InvalidJob,
        "unique_key 'xxx.* of 1 to 255 characters",
    ),
    "a unique key of the task's own making that is too long": (
        lambda: unique_on_all.delay("x" * 256),
        InvalidJob,
        "unique_key 'tests.integration.test_bad_input.unique_on_all:xxx.* of 1 to 255",
    ),
    "a time limit in words": (lambda: add.apply_async((1, 2), time_limit="soon"), InvalidJob, "time_limit: 'soon' is not a num"),
    "a soft time limit in words": (
        lambda: plain.apply_async((1,), soft_time_limit=[5]),
        InvalidJob,
        r"soft_time_limit: \[5\] is not a number of seconds",
    ),
    "a time limit in words of the task's own": (lambda: limited_in_words.delay(), InvalidJob, "time_limit: 'soon' is not"),
    "a timelimit of a strange shape": (
        lambda: add.apply_async((1, 2), headers={"timelimit": "60"}),
        InvalidJob,
        "tests.sample_tasks.add: .*its timelimit is not",
    ),
    "a type nobody can build in a header": (
        lambda: add.apply_async((1, 2), headers={"x": {"__type__": "uuid", "__value__": {"hex": 1}}}),
        InvalidJob,
        "tests.sample_tasks.add: .*headers or properties cannot be read back",
    ),
    "missing arguments": (lambda: add.delay(), TypeError, "add.*missing 2 required"),
}


def _endless() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


@pytest.mark.parametrize("case", CALLS)
def test_bad_call_is_refused_by_name_and_nothing_is_accepted(case: str, db: Conn, bench: Bench) -> None:
    call, kind, message = CALLS[case]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert db.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
    assert bench.waiting() == []


def test_bad_call_in_the_callers_transaction_leaves_that_usable(db: Conn, bench: Bench) -> None:
    with session() as own, own.begin(), enqueue_in(own):
        for case in ("an object in a group", "a zero byte in an id", "an object in a header", "an endless countdown"):
            with pytest.raises(InvalidJob):
                CALLS[case][0]()
        kept = add.delay(1, 2)
    assert bench.ids() == [kept.id]


def test_unique_task_may_have_arguments_of_any_length(db: Conn, bench: Bench) -> None:
    first, same, other = (echoed.delay(letter * 100_000) for letter in "aab")
    assert first.id == same.id
    assert first.id != other.id
    (longest,) = db.execute("SELECT max(length(unique_key)) FROM jobs").fetchone() or (None,)
    assert longest <= 255


def test_unique_key_tells_arguments_apart_whatever_the_length_of_the_tasks_name(db: Conn, bench: Bench) -> None:
    first, same, other = (named_at_length.delay(n) for n in (1, 1, 2))
    assert first.id == same.id
    assert first.id != other.id


def test_limit_of_a_message_counts_the_bytes_that_are_stored(db: Conn, conf: Callable[..., None]) -> None:
    conf(max_message_bytes=2048)
    echo.delay("x" * 1900)
    with pytest.raises(MessageTooLarge):
        echo.delay("\U0001f680" * 190)  # twelve bytes each in JSON's ASCII
    assert db.execute("SELECT count(*) FROM jobs").fetchone() == (1,)


def test_largest_message_allowed_is_accepted_and_runs(db: Conn, bench: Bench) -> None:
    text = "x" * (1_048_576 - 200)
    result = echo.delay(text)
    bench.work()
    assert result.get(timeout=5) == [[text], {}]


def test_past_times_and_odd_ones_are_taken_as_they_are(db: Conn, bench: Bench) -> None:
    for call in (
        lambda: add.apply_async((1, 2), eta=datetime(2001, 1, 1, tzinfo=UTC)),
        lambda: add.apply_async((1, 2), countdown=-5),
        lambda: add.apply_async((1, 2), eta="2001-01-01T00:00:00Z"),
        lambda: add.apply_async((1, 2), countdown=0),
    ):
        call()
    states = db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()
    assert states == [("queued", 4)]


def test_unregistered_task_is_accepted_by_name_since_another_program_may_know_it(db: Conn, bench: Bench) -> None:
    assert app.send_task("theirs.task", (1,)).id in bench.ids()


def test_what_a_job_may_use_is_refused_outside_one(env: dict[str, str]) -> None:
    for use in (lambda: unique.session, lambda: unique.once("x"), lambda: unique.progress(1), lambda: unique.cancelled):
        with pytest.raises(NotInJob, match="only inside a running durable job"):
            use()


def test_unknown_job_is_named(db: Conn) -> None:
    for act in (manage.show, manage.replay):
        with pytest.raises(JobNotFound, match="'no-such-job'"):
            act(db, "no-such-job")
    assert app.AsyncResult("no-such-job").state == "PENDING"


# ---- settings

#: A wrong value for each setting that has one, and a word of what is said about it.
WRONG = {
    "HOLDFAST_FLAGS_POLL_S": ("0", "greater than 0"),
    "HOLDFAST_PRESENCE_BEAT_S": ("0", "greater than"),
    "DATABASE_URL": ("mysql://somewhere", "postgresql://"),
    "REDIS_URL": ("http://somewhere", "redis://"),
    "CACHE_URL": ("redis://somewhere/0?retry_on_timeout=yes", "must not ask for retries"),
    "HOLDFAST_INTAKE_KEEP_SIZE": ("-1", "greater than or equal to 0"),
    "HOLDFAST_INTAKE_RECLAIM_S": ("0", "greater than 0"),
    "HOLDFAST_EVENTS_KEEP_SIZE": ("0", "greater than or equal to 1"),
    "HOLDFAST_EVENTS_DAYS": ("0", "greater than or equal to 1"),
    "HOLDFAST_WINDOW": ("0", "greater than or equal to 1"),
    "HOLDFAST_RELAY_INTERVAL_S": ("0", "greater than 0"),
    "HOLDFAST_AUDIT_AFTER_S": ("never", "number"),
    "HOLDFAST_MAX_MESSAGE_BYTES": ("1MB", "integer"),
    "HOLDFAST_NODE_BEAT_S": ("-1", "greater than 0"),
    "HOLDFAST_NODE_DEAD_S": ("1", "HOLDFAST_NODE_BEAT_S"),
    "HOLDFAST_MAX_CRASHES": ("0", "greater than or equal to 1"),
    "HOLDFAST_LEASE_S": ("0", "greater than"),
    "HOLDFAST_SHUTDOWN_GRACE_S": ("-1", "greater than or equal to 0"),
    "HOLDFAST_RESULT_TTL_S": ("1.5", "integer"),
    "HOLDFAST_IDEMPOTENCY_TTL_S": ("0", "greater than or equal to 1"),
    "HOLDFAST_HISTORY_DAYS": ("0", "greater than or equal to 1"),
    "HOLDFAST_DB_POOL_SIZE": ("many", "integer"),
    "HOLDFAST_DB_CONNECT_S": ("0", "greater than 0"),
    "HOLDFAST_DB_PREPARED": ("maybe", "boolean"),
    "HOLDFAST_REDIS_TIMEOUT_S": ("0", "greater than 0"),
    "HOLDFAST_CACHE_TIMEOUT_MS": ("0", "greater than"),
    "HOLDFAST_CACHE_BYPASS_LOADS": ("0", "greater than"),
    "HOLDFAST_LIMITS": ("host 10/second", "policies of three words or more"),
    "HOLDFAST_LIMITS_TIMEOUT_MS": ("0", "greater than or equal to 1"),
    "HOLDFAST_LIMITS_FLEET_SIZE": ("0", "greater than or equal to 1"),
    "HOLDFAST_REDLOCK_URLS": ("localhost:6379", "redis://"),
    "HOLDFAST_REDLOCK_TIMEOUT_MS": ("0", "greater than or equal to 1"),
    "HOLDFAST_LOCK_SNOOZE_S": ("0", "greater than 0"),
    "HOLDFAST_HTTP_ALLOW_PRIVATE": ("perhaps", "boolean"),
    "HOLDFAST_HTTP_MAX_BYTES": ("-1", "greater than or equal to 0"),
    "HOLDFAST_LLM_BASE_URL": ("https://user:secret@api.example.com/v1", "without a password"),
    "HOLDFAST_LLM_API_KEY": ("key\n", "printable ASCII"),
    "HOLDFAST_LLM_PRICES": ("small 0.15 0.60", "whole millionths"),
    "HOLDFAST_LLM_SUBJECT": ("acme", "org:acme/team:7"),
    "HOLDFAST_LLM_MAX_OUTPUT_TOKENS": ("0", "greater than or equal to 1"),
    "HOLDFAST_LLM_TIMEOUT_S": ("0", "greater than 0"),
    "HOLDFAST_LLM_LEASE_S": ("0", "greater than or equal to 1"),
    "HOLDFAST_LLM_CACHE_TTL_S": ("0", "greater than or equal to 1"),
    "HOLDFAST_GATEWAY_BODY_BYTES": ("1", "greater than or equal to 1024"),
    "HOLDFAST_GATEWAY_BATCH_BYTES": ("1", "greater than or equal to 1024"),
    "HOLDFAST_GATEWAY_WAIT_S": ("3600", "less than or equal to 600"),
    "HOLDFAST_LOG_LEVEL": ("LOUD", "DEBUG, INFO"),
    "HOLDFAST_LOG_JSON": ("ja", "boolean"),
    "HOLDFAST_QUEUES": (" , ", "at least one"),
    "HOLDFAST_FOREIGN_QUEUE": ("default", "also a ledger queue"),
    "HOLDFAST_WEBHOOK_SECRETS": ("whsec_short", "24 to 64 random bytes"),
    "HOLDFAST_WEBHOOK_RETRY_S": ("-1", "greater than or equal to 0"),
    "HOLDFAST_CONSOLE_TLS": ("perhaps", "boolean"),
    "HOLDFAST_CONSOLE_URL": ("https://me:secret@holdfast.example.com/", "without a password"),
    "HOLDFAST_FLOWER_URL": ("javascript:alert(1)", "https://holdfast.example.com/console"),
    "HOLDFAST_FLOWER_AUTH": ("no-colon", "user:password"),
}
#: Any text is right for these, as far as can be told before they are used.
FREE = {"HOLDFAST_HOME", "HOLDFAST_INCLUDE", "HOLDFAST_FAULT"}


def variables() -> set[str]:
    """Return the name of the variable that each setting is read from first."""
    return {str(f.validation_alias.choices[0]) if f.validation_alias else f"HOLDFAST_{name.upper()}"  # type: ignore[union-attr]
            for name, f in Settings.model_fields.items()}  # fmt: skip


def test_every_setting_has_a_wrong_value_here() -> None:
    assert variables() == WRONG.keys() | FREE


@pytest.mark.parametrize("variable", WRONG)
def test_wrong_setting_is_named_with_what_it_should_be(
    variable: str, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    value, hint = WRONG[variable]
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    text = str(caught.value)
    assert variable in text
    assert hint in text
    assert "\n" not in text


def test_all_wrong_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    monkeypatch.setenv("HOLDFAST_WINDOW", "0")
    monkeypatch.setenv("HOLDFAST_LEASE_S", "long")
    with pytest.raises(SettingsError, match=r"(?s)HOLDFAST_WINDOW.*HOLDFAST_LEASE_S"):
        read_settings()


def test_servers_are_set_together_or_not_at_all(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    monkeypatch.delenv("CACHE_URL")
    with pytest.raises(SettingsError, match="DATABASE_URL, REDIS_URL and CACHE_URL go together"):
        read_settings()


def test_password_of_a_wrong_url_is_not_told(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    for variable in ("DATABASE_URL", "REDIS_URL", "CACHE_URL"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "wrong://user:secret@somewhere/0")
            with pytest.raises(SettingsError, match=variable) as caught:
                read_settings()
            assert "secret" not in str(caught.value)


def test_no_servers_and_no_embedded_stack_is_said_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], tmp_path: Any
) -> None:
    for variable in ("DATABASE_URL", "REDIS_URL", "CACHE_URL"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    forget()
    with pytest.raises(SettingsError, match="`holdfast up`"):
        add.delay(1, 2)


# ---- servers that would break the promises


@pytest.fixture
def bare_database(stack: Stack, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> Any:
    """A database that nobody has migrated."""
    monkeypatch.setenv("DATABASE_URL", create_database(stack.postgres.url, "bare"))
    forget()
    yield
    forget()
    drop_database(stack.postgres.url, "bare")


def test_unmigrated_database_is_said_with_the_command(bare_database: None, bench_redis_empty: Callable[[], bool]) -> None:
    for act in (check_schema, lambda: add.delay(1, 2), lambda: enqueue_many(add, [(1, 2)]), lambda: app.AsyncResult("x").state):
        with pytest.raises(SchemaOutdated, match="`holdfast db upgrade`") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert bench_redis_empty()


def test_database_of_an_older_release_is_said_with_both_revisions(db: Conn) -> None:
    head = db.execute("SELECT version_num FROM alembic_version").fetchone()
    assert head is not None
    check_schema()
    db.execute("UPDATE alembic_version SET version_num = '0000'")
    try:
        with pytest.raises(SchemaOutdated, match=f"at revision 0000, this release needs {head[0]}: run `holdfast db upgrade`"):
            check_schema()
    finally:
        db.execute("UPDATE alembic_version SET version_num = %s", head)


def test_database_of_a_newer_release_is_good_enough_for_one_that_restarts_meanwhile(db: Conn) -> None:
    head = db.execute("SELECT version_num FROM alembic_version").fetchone()
    db.execute("UPDATE alembic_version SET version_num = '9999'")
    try:
        check_schema()
    finally:
        db.execute("UPDATE alembic_version SET version_num = %s", head)


@pytest.fixture
def bench_redis_empty(redis: Any) -> Callable[[], bool]:
    return lambda: redis.keys("default*") == []


def test_evicting_redis_is_refused_with_the_fix(env: dict[str, str], redis: Any) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(SettingsError, match=r"REDIS_URL.*'allkeys-lru'.*set `maxmemory-policy noeviction`.*CACHE_URL"):
            check_policy()
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    check_policy()


def start_worker() -> subprocess.CompletedProcess[str]:
    """Start a worker that is expected to refuse; return what it said."""
    return harness.run("celery", "-A", "worker.app", "worker", "-P", "solo", "-l", "WARNING")


def said(run: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in run.stderr.splitlines() if line.startswith("holdfast:")]


def test_worker_refuses_an_evicting_redis_in_one_line(env: dict[str, str], redis: Any) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lfu")
    try:
        run = start_worker()
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    assert run.returncode == 1, run.stderr
    assert len(said(run)) == 1
    assert "set `maxmemory-policy noeviction`" in said(run)[0]
    assert "Traceback" not in run.stderr


def test_worker_refuses_a_wrong_setting_and_its_last_line_says_which(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_WINDOW", "0")
    run = start_worker()
    assert run.returncode != 0
    assert run.stderr.strip().splitlines()[-1].strip() == (
        "worker.errors.SettingsError: HOLDFAST_WINDOW: Input should be greater than or equal to 1")  # fmt: skip
    assert "pydantic_core" not in run.stderr


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """Let a worker begin to start in this process; return the line with which it refused."""
    with pytest.raises(SystemExit) as caught:
        _check_and_register()
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("holdfast: ")
    return line


def test_worker_refuses_an_unmigrated_database_in_one_line(bare_database: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "`holdfast db upgrade`" in refusal(capsys)


def test_worker_refuses_a_database_that_is_away_without_telling_its_password(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://holdfast:secret@127.0.0.1:1/holdfast")
    forget()
    line = refusal(capsys)
    assert "Postgres did not answer" in line
    assert "secret" not in line


def test_worker_refuses_a_fault_that_no_point_has(conf: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    conf(fault="nowhere:kill")
    assert "'nowhere:kill'" in refusal(capsys)


def test_errors_of_ours_are_one_family() -> None:
    for kind in (InvalidJob, LedgerUnavailable, SchemaOutdated, SettingsError, UnknownQueue):
        assert issubclass(kind, HoldfastError)
    assert issubclass(InvalidJob, ValueError)


def test_task_without_a_row_is_checked_the_same(bench: Bench) -> None:
    with pytest.raises(Exception, match="object"):
        plain.delay(object())
    assert bench.waiting() == []
    assert noop.name == "tests.sample_tasks.noop"
