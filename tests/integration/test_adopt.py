"""Foreign messages become jobs, once; what cannot be one is set aside with the reason, and no message ends a process."""

from __future__ import annotations

import base64
import json
import pickle
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from celery import Celery
from redis import Redis

from tests.harness import eventually
from tests.integration.conftest import Bench
from tests.sample_tasks import add
from worker.app import app
from worker.embedded import Stack
from worker.engine.relay import Relay
from worker.errors import InvalidJob, JobNotFound, StoreUnavailable
from worker.faults import InjectedFault
from worker.ledger import manage
from worker.store import keys

Conn = psycopg.Connection[Any]
ADD = "tests.sample_tasks.add"


@pytest.fixture(params=[2, 1], ids=["protocol-2", "protocol-1"])
def foreign(request: pytest.FixtureRequest, stack: Stack, redis: Redis) -> Iterator[Celery]:
    """A Celery client that knows nothing of Holdfast: the stock transport, the queue `celery`, bodies in base64."""
    client = Celery("foreign", broker=stack.redis.url, set_as_current=False)
    client.conf.task_protocol = request.param
    yield client
    client.close()


def jobs(db: Conn) -> list[str]:
    return [row[0] for row in db.execute("SELECT id FROM jobs ORDER BY created_at, id")]


def aside(db: Conn) -> list[dict[str, Any]]:
    """Return what was set aside, as people list it."""
    return manage.list_jobs(db, manage.Filter(states=["discarded"]))


def message(task: str = ADD, body: Any = None, **headers: Any) -> dict[str, Any]:
    """Return a sound foreign message as it lies in Redis, to be spoiled."""
    job_id = headers.pop("id", str(uuid4()))
    text = json.dumps([[1, 2], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}] if body is None else body)
    return {
        "headers": {"lang": "py", "task": task, "id": job_id, "root_id": job_id, **headers},
        "properties": {
            "correlation_id": job_id,
            "delivery_tag": str(uuid4()),
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": "celery"},
            "priority": 0,
        },
        "body": base64.b64encode(text.encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
    }


def push(redis: Redis, what: dict[str, Any] | list[Any] | bytes, queue: str = "celery") -> None:
    redis.lpush(queue, what if isinstance(what, bytes) else json.dumps(what))


# ---- sound ones


def test_message_of_a_foreign_client_becomes_a_job_and_runs(foreign: Celery, db: Conn, bench: Bench, relay: Relay) -> None:
    sent = foreign.send_task(ADD, (1,), {"y": 2})
    assert bench.redis.llen("celery") == 1
    relay.round()
    assert bench.redis.llen("celery") == 0
    assert jobs(db) == bench.ids() == [sent.id]
    assert db.execute("SELECT task, queue, priority, caller, root_id FROM jobs").fetchone() == (
        ADD,
        "default",
        5,
        "celery",
        sent.id,
    )
    bench.work()
    assert app.AsyncResult(sent.id).get(timeout=2) == 3


def test_options_of_a_foreign_call_are_kept(foreign: Celery, db: Conn, bench: Bench, relay: Relay) -> None:
    later = foreign.send_task(ADD, (1, 2), countdown=100, expires=500, priority=3)
    urgent = foreign.send_task(ADD, (1, 2), priority=7, link=foreign.signature("tests.sample_tasks.noop", immutable=True))
    relay.round()
    row = db.execute(
        "SELECT state, extract(epoch FROM available_at - created_at), extract(epoch FROM expires_at - created_at), priority "
        "FROM jobs WHERE id = %s",
        (later.id,),
    ).fetchone()
    assert row is not None
    assert (row[0], row[3]) == ("scheduled", 3)
    assert row[1] == pytest.approx(100, abs=5)
    assert row[2] == pytest.approx(500, abs=5)
    assert bench.ids() == [urgent.id]
    bench.work(most=1)
    assert [m["headers"]["task"] for m in bench.waiting()] == ["tests.sample_tasks.noop"], "its callback is a job"
    assert bench.ids() == [job_id for job_id in jobs(db) if job_id != later.id]


def test_many_foreign_messages_are_adopted_in_order(foreign: Celery, db: Conn, bench: Bench, relay: Relay) -> None:
    sent = [foreign.send_task(ADD, (i, i)).id for i in range(250)]
    while bench.redis.llen("celery"):
        relay.round()
    assert jobs(db) == bench.ids() == sent


@pytest.mark.parametrize("priority", [True, False, "3", 3.5, -1, 10, None, [3], {"p": 3}])
def test_priority_that_is_none_is_the_usual_one(priority: Any, db: Conn, bench: Bench, relay: Relay) -> None:
    odd = message(id="odd")
    odd["properties"]["priority"] = priority
    push(bench.redis, odd)
    push(bench.redis, message(id="good"))
    relay.round()
    assert db.execute("SELECT id, priority FROM jobs ORDER BY id").fetchall() == [("good", 5), ("odd", 5)]
    assert sorted(bench.work()) == ["good", "odd"]


def test_type_of_celerys_json_in_a_foreign_header_is_built_for_the_task(db: Conn, bench: Bench, relay: Relay) -> None:
    push(bench.redis, message(id="typed", **{"x-when": {"__type__": "datetime", "__value__": "2030-01-01T00:00:00"}}))
    relay.round()
    (waiting,) = bench.waiting()
    assert waiting["headers"]["x-when"].year == 2030
    assert bench.work() == ["typed"]


def test_priority_buckets_of_the_foreign_queue_are_read(foreign: Celery, db: Conn, bench: Bench, relay: Relay) -> None:
    sent = {foreign.send_task(ADD, (1, 2), priority=priority).id for priority in (0, 3, 6, 9)}
    relay.round()
    assert set(jobs(db)) == sent
    assert [bench.redis.llen(key) for key in keys.queue_lists("celery")] == [0, 0, 0, 0]


def test_relay_that_dies_between_the_commit_and_the_taking_out_makes_one_job(
    db: Conn, bench: Bench, relay: Relay, fault: Callable[[str], None]
) -> None:
    push(bench.redis, message(id="mine"))
    fault("after-commit:raise")
    with pytest.raises(InjectedFault):
        relay.adopt()
    assert bench.redis.llen("celery") == 1
    assert jobs(db) == ["mine"]
    Relay(app).round()
    assert bench.redis.llen("celery") == 0
    assert jobs(db) == ["mine"]
    db.execute("UPDATE jobs SET dispatched_at = dispatched_at - interval '1 minute'")  # by its row it was sent
    relay.audit()
    relay.send_due()
    bench.work()
    assert db.execute("SELECT id, attempt FROM job_history").fetchall() == [("mine", 1)]


def test_relay_that_dies_before_the_commit_leaves_the_message(
    db: Conn, bench: Bench, relay: Relay, fault: Callable[[str], None]
) -> None:
    push(bench.redis, message(id="a"))
    push(bench.redis, message(id="b"))
    fault("after-insert:raise")
    with pytest.raises(InjectedFault):
        relay.adopt()
    assert jobs(db) == []
    assert bench.redis.llen("celery") == 2
    relay.round()
    assert jobs(db) == ["a", "b"]


def test_id_that_is_known_living_or_past_is_dropped(db: Conn, bench: Bench, relay: Relay) -> None:
    push(bench.redis, message(id="mine"))
    push(bench.redis, message(id="mine"))
    relay.round()
    assert jobs(db) == ["mine"]
    bench.work()
    push(bench.redis, message(id="mine"))
    relay.round()
    assert bench.redis.llen("celery") == 0
    assert jobs(db) == bench.ids() == []
    assert db.execute("SELECT count(*) FROM job_history").fetchone() == (1,)


def test_two_relays_adopt_a_message_once(db: Conn, bench: Bench, relay: Relay) -> None:
    for n in range(100):
        push(bench.redis, message(id=f"id-{n:03}"))
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(which.adopt) for which in (relay, Relay(app))]:
            future.result()
    relay.adopt()
    assert sorted(jobs(db)) == sorted(set(bench.ids())) == [f"id-{n:03}" for n in range(100)]
    bench.work()
    assert db.execute("SELECT count(*), max(attempt) FROM job_history").fetchone() == (100, 1)


# ---- unsound ones


def spoiled(**changes: Any) -> bytes:
    return json.dumps({**message(), **changes}).encode()


PICKLED = base64.b64encode(pickle.dumps(((1, 2), {}, {}))).decode()
UNSOUND: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"\x80\x04not json", "not a Celery message"),
    "no text": (b"\xff\xfe\x00", "not a Celery message"),
    "nothing": (b"", "not a Celery message"),
    "a number": (b"5", "not a Celery message"),
    "a list": (b"[1, 2]", "not a Celery message"),
    "null": (b"null", "not a Celery message"),
    "nesting without end": (b"[" * 100_000, "not a Celery message"),
    "another program's JSON": (b'{"job": "resize", "id": 7}', "not a Celery message: KeyError: 'properties'"),
    "no task": (json.dumps(message() | {"headers": {"id": "x"}}).encode(), "not a Celery message: KeyError: 'task'"),
    "no id": (json.dumps(message() | {"headers": {"task": ADD}}).encode(), "not a Celery message: KeyError: 'id'"),
    "headers that are a list": (spoiled(headers=[1]), "not a Celery message"),
    "properties that are a list": (spoiled(properties=[1]), "not a Celery message"),
    "a task that is no text": (json.dumps(message(task=["x"])).encode(), "not a Celery message"),  # type: ignore[arg-type]
    "args that are no list": (json.dumps(message(body=["ab", {}, {}])).encode(), "not a list and an object"),
    "a body of two": (json.dumps(message(body=[[], {}])).encode(), "not a Celery message"),
    "a body that is no base64": (spoiled(body="%%%"), "not a Celery message"),
    "a body nested without end": (spoiled(body=base64.b64encode(b"[" * 100_000).decode()), "not a Celery message"),
    "a body of a type nobody can build": (
        json.dumps(message(body=[[{"__type__": "decimal", "__value__": "x"}], {}, {}])).encode(),
        "not a Celery message.*Conversion",
    ),
    "an eta that is no time": (json.dumps(message(eta="tomorrow")).encode(), "'tomorrow' is not a time"),
    "an eta that is no text": (json.dumps(message(eta=5)).encode(), "not a Celery message"),
    "a zero byte in the id": (json.dumps(message(id="a\0b")).encode(), "not a Celery message"),
    "half a surrogate in the id": (json.dumps(message(id="\ud800")).encode(), "not a Celery message"),
    "pickle": (spoiled(**{"content-type": "application/x-python-serialize", "body": PICKLED}), "content type.*JSON only"),
    "yaml": (spoiled(**{"content-type": "application/x-yaml"}), "content type.*JSON only"),
    "a timelimit that is a text": (json.dumps(message(timelimit="60")).encode(), "timelimit is not .hard, soft. in seconds"),
    "a timelimit of one": (json.dumps(message(timelimit=[60])).encode(), "timelimit is not"),
    "a timelimit in words": (json.dumps(message(timelimit=["soon", None])).encode(), "timelimit is not"),
    "a timelimit that is an object": (json.dumps(message(timelimit={"hard": 60})).encode(), "timelimit is not"),
    "a timelimit that is true": (json.dumps(message(timelimit=[True, None])).encode(), "timelimit is not"),
    "an embed that is a list": (json.dumps(message(body=[[], {}, [1]])).encode(), "not a list and an object"),
    "an id that is too long": (json.dumps(message(id="x" * 256)).encode(), "id .* is not a text of at most 255 characters"),
    "a group that is no text": (json.dumps(message(group=5)).encode(), "group '5' is not a text"),
    "a type nobody can build in a header": (
        json.dumps(message(x={"__type__": "uuid", "__value__": {"hex": 1}})).encode(),
        "headers or properties cannot be read back",
    ),
    "a type nobody can build where to reply": (
        spoiled(properties={"body_encoding": "base64", "reply_to": {"__type__": "datetime", "__value__": "never"}}),
        "headers or properties cannot be read back",
    ),
    "an unknown task": (json.dumps(message(task="their.unknown")).encode(), "unknown task 'their.unknown'"),
    "an unknown task with a zero byte": (json.dumps(message(task="a\0b")).encode(), "task .* is not a text"),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_unsound_message_is_set_aside_with_the_reason(case: str, db: Conn, bench: Bench, relay: Relay) -> None:
    raw, reason = UNSOUND[case]
    push(bench.redis, raw)
    push(bench.redis, message(id="sound"))
    for _ in range(2):
        relay.round()
    assert bench.redis.llen("celery") == 0
    assert jobs(db) == ["sound"], "what lies behind it is adopted all the same"
    (entry,) = aside(db)
    assert re.search(reason, entry["error"], re.DOTALL), entry["error"]
    kept = db.execute("SELECT message ->> 'raw' FROM job_history").fetchone()
    assert kept is not None
    assert base64.b64decode(kept[0]) == raw


def test_same_unsound_message_is_one_entry_however_often_it_comes(db: Conn, bench: Bench, relay: Relay) -> None:
    for _ in range(3):
        push(bench.redis, b"nonsense")
        relay.round()
    assert len(aside(db)) == 1


def test_what_is_set_aside_can_be_shown_and_replayed_after_the_fix(db: Conn, bench: Bench, relay: Relay) -> None:
    name = f"tests.late_{uuid4().hex}"
    push(bench.redis, message(task=name, id="late", body=[[12], {}, {}]))
    relay.round()
    (entry,) = aside(db)
    assert entry["error"] == f"unknown task {name!r}"
    assert manage.show(db, entry["id"])["state"] == "discarded"

    @app.task(name=name)
    def late(x: int) -> int:
        return x * 10

    assert late.name in app.tasks
    manage.replay(db, entry["id"])
    assert aside(db) == []
    relay.round()
    assert jobs(db) == bench.ids() == ["late"]
    bench.work()
    assert app.AsyncResult("late").get(timeout=2) == 120


def test_replay_without_the_fix_sets_it_aside_again(db: Conn, bench: Bench, relay: Relay) -> None:
    push(bench.redis, b"nonsense")
    relay.round()
    (entry,) = aside(db)
    manage.replay(db, entry["id"])
    relay.round()
    assert [e["id"] for e in aside(db)] == [entry["id"]]


@pytest.mark.parametrize("raw", [b"\xff\xfe\x00", b"\x80\x04not json", b"", b"[1, 2]", json.dumps(message(id="\ud800")).encode()])
def test_raw_message_is_replayed_byte_by_byte(raw: bytes, db: Conn, bench: Bench, relay: Relay) -> None:
    push(bench.redis, raw)
    relay.round()
    (entry,) = aside(db)
    manage.replay(db, entry["id"])
    assert bench.redis.lrange("celery", 0, -1) == [raw]
    assert aside(db) == []
    with pytest.raises(JobNotFound):
        manage.replay(db, entry["id"])
    relay.round()
    assert [again["id"] for again in aside(db)] == [entry["id"]]
    assert bench.redis.llen("celery") == 0


def test_raw_message_is_not_replayed_while_redis_is_away(db: Conn, stack: Stack, bench: Bench, relay: Relay) -> None:
    push(bench.redis, b"nonsense")
    relay.round()
    (entry,) = aside(db)
    stack.redis.kill()
    with pytest.raises(StoreUnavailable):
        manage.replay(db, entry["id"])
    assert [kept["id"] for kept in aside(db)] == [entry["id"]]


def test_message_that_a_relay_meets_while_it_is_being_replayed_is_not_lost(
    env: dict[str, str], db: Conn, bench: Bench, relay: Relay
) -> None:
    push(bench.redis, b"nonsense")
    relay.round()
    (entry,) = aside(db)
    with psycopg.connect(env["DATABASE_URL"]) as slow, ThreadPoolExecutor(2) as pool:
        slow.execute("SELECT FROM job_history FOR UPDATE")  # the replay has put the message back, and cannot take it off the list
        replay = pool.submit(_replay, env, entry["id"])
        eventually(lambda: bench.redis.llen("celery") == 1)
        adopting = pool.submit(relay.adopt)
        time.sleep(0.3)  # enough for a relay that does not wait to find the entry known and to drop the message
        slow.rollback()
        replay.result()
        adopting.result()
    relay.adopt()
    assert [kept["id"] for kept in aside(db)] == [entry["id"]]
    assert bench.redis.llen("celery") == 0


def _replay(env: dict[str, str], job_id: str) -> None:
    with psycopg.connect(env["DATABASE_URL"], autocommit=True) as conn:
        manage.replay(conn, job_id)


def test_finished_job_is_replayed_under_its_id_and_a_living_one_is_not(db: Conn, bench: Bench, relay: Relay) -> None:
    job = add.delay(1, 2)
    with pytest.raises(InvalidJob, match="not finished"):
        manage.replay(db, job.id)
    bench.work()
    eventually(lambda: bench.redis.exists(keys.job_lock(job.id)) == 0)  # released a moment after the end
    manage.replay(db, job.id)
    with pytest.raises(InvalidJob, match="lives again"):
        manage.replay(db, job.id)
    relay.round()
    assert bench.work() == [job.id]
    assert db.execute("SELECT attempt FROM job_history ORDER BY finished_at").fetchall() == [(1,), (2,)]


# ---- in the wrong place


HANDED = {
    **{name: raw for name, (raw, _) in UNSOUND.items() if raw},
    "a sound foreign message": json.dumps(message(id="sound")).encode(),
    "a stray of ours without a tag": json.dumps({"headers": {"holdfast": {"r": 0}}, "properties": {}}).encode(),
    "a type nobody can build in the headers": json.dumps(message(x={"__type__": "uuid", "__value__": {"hex": 1}})).encode(),
}


def test_what_is_not_ours_on_a_ledger_queue_is_handed_over_and_the_worker_goes_on(bench: Bench, db: Conn) -> None:
    for raw in HANDED.values():
        push(bench.redis, raw, "default")
    last = {"body": "[[], {}, {}]", "headers": {"holdfast": {"r": 0}, "id": "last", "task": "t"},
            "properties": {"delivery_tag": "x", "delivery_info": {}}}  # fmt: skip
    bench.redis.lpush("default", json.dumps(last))
    got: list[Any] = []
    with app.connection_for_read() as connection:
        consumer = app.amqp.TaskConsumer(connection.default_channel, on_message=lambda message: got.append(message.headers["id"]))
        with consumer:
            while not got:
                connection.drain_events(timeout=5)
    assert got == ["last"]
    assert sorted(bench.redis.lrange("celery", 0, -1)) == sorted(HANDED.values())  # type: ignore[type-var,arg-type]
    assert bench.waiting() == []
