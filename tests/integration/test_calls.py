"""Calls made jobs, and the registry that tells doors without Python of the tasks."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from worker.app import app
from worker.engine import calls
from worker.engine.calls import Call, accept_calls, new_job
from worker.engine.registry import register_tasks
from worker.errors import MessageTooLarge
from worker.ledger.message import fault_of

Conn = psycopg.Connection[Any]


@app.task(name="calls.own", bind=True, queue="default", priority=2, expires=60, max_attempts=3, unique_for=30)
def own(self: Any, n: int) -> None: ...


@app.task(name="calls.many", limits=["tenant:{kwargs[tenant]} 5/second"])
def many(first: float, *others: int, tenant: str = "a") -> None: ...


@app.task(name="calls.fleeting", durable=False)
def fleeting() -> None: ...


def test_job_of_a_call_is_a_sound_message_with_the_tasks_own_options(env: dict[str, str]) -> None:
    job = new_job(app, Call("calls.own", [1], caller="shop", idempotency_key="k", metadata={"a": 1}))
    assert fault_of(job.message, job.id) is None
    assert (job.queue, job.priority, job.expires_s, job.max_attempts, job.unique_for_s) == ("default", 2, 60.0, 3, 30.0)
    assert (job.caller, job.idempotency_key, job.metadata, job.fresh) == ("shop", "k", {"a": 1}, True)
    assert job.unique_key == own.unique_key([1], {})
    given = new_job(app, Call("calls.own", [1], priority=0, max_attempts=9, unique="u", expires_s=5, id="mine"))
    assert (given.priority, given.max_attempts, given.unique_key, given.expires_s) == (0, 9, "calls.own:u", 5)
    assert (given.id, given.fresh, given.message["headers"]["id"]) == ("mine", False, "mine")


def test_call_over_the_limit_of_size_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(MessageTooLarge) as caught:
        new_job(app, Call("calls.many", [1], {"tenant": "x" * 2_000_000}))
    assert (caught.value.code, caught.value.field) == ("too_large", "args")


def test_callback_and_metadata_are_kept_with_the_job(db: Conn) -> None:
    first, second = accept_calls(app, [
        Call("calls.many", [1], {"tenant": "a"}, callback_url="https://example.org/", metadata={"order": [7]}),
        Call("calls.many", [2], {"tenant": "b"}),
    ])  # fmt: skip
    sent = many.apply_async((3,), {"tenant": "c"}, callback_url="https://example.net/", metadata={"from": "python"})
    rows = db.execute("SELECT id, callback_url, metadata FROM jobs").fetchall()
    assert {row[0]: row[1:] for row in rows} == {
        first: ("https://example.org/", {"order": [7]}), second: (None, None),
        sent.id: ("https://example.net/", {"from": "python"}),
    }  # fmt: skip


def test_calls_are_accepted_all_or_none(db: Conn) -> None:
    with pytest.raises(MessageTooLarge):
        accept_calls(app, [Call("calls.many", [1], {"tenant": "a"}), Call("calls.many", [1], {"tenant": "x" * 2_000_000})])
    assert db.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


def test_registry_tells_what_a_door_without_python_must_know(db: Conn) -> None:
    register_tasks(app)
    rows = db.execute(
        "SELECT queue, priority, max_attempts, expires_s, positional, open_ended, limited, is_unique, arguments, headers "
        "FROM task_types WHERE name = ANY(%s) ORDER BY name DESC",
        (["calls.own", "calls.many", "calls.fleeting"],),
    ).fetchall()
    assert [row[:8] for row in rows] == [
        ("default", 2, 3, 60.0, ["n"], False, False, True), ("default", 5, None, None, ["first"], True, True, False),
    ]  # fmt: skip
    assert rows[0][8]["required"] == ["n"]
    headers = {**rows[0][9], "id": "x", "root_id": "x", "argsrepr": "(1,)", "kwargsrepr": "{}"}
    message = {"headers": headers, "properties": {}, "body": "[[1], {}, {}]"}
    assert fault_of(message, "x") is None
    assert db.execute("SELECT count(*) FROM task_types WHERE name LIKE 'celery.%%'").fetchone() == (0,)


def test_registering_again_writes_nothing(db: Conn) -> None:
    register_tasks(app)
    before = db.execute("SELECT max(updated_at), count(*) FROM task_types").fetchone()
    register_tasks(app)
    assert db.execute("SELECT max(updated_at), count(*) FROM task_types").fetchone() == before


def test_one_form_serves_all_calls_of_a_task(env: dict[str, str]) -> None:
    new_job(app, Call("calls.own", [1]))
    assert calls.form_of(app, own) is calls.form_of(app, app.tasks["calls.own"])
