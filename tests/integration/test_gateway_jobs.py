"""Jobs over HTTP: handed in once, looked at, waited for, followed, cancelled, run again."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import httpx
import psycopg
import pytest

from tests import sample_tasks as tasks
from tests.harness import eventually
from tests.integration.conftest import Bench
from tests.integration.door import ADD, ECHO, Door, key_for, problem
from tests.integration.door import admin as admin
from tests.integration.door import door as door
from tests.integration.door import me as me
from worker.ledger import events as ledger_events

Conn = psycopg.Connection[Any]
CALL = {"task": ADD, "args": [1, 2]}


def count(db: Conn) -> int:
    row = db.execute("SELECT count(*) FROM jobs").fetchone()
    assert row is not None
    return int(row[0])


def post(client: httpx.Client, **more: Any) -> str:
    answer = client.post("/v1/jobs", json={**CALL, **more})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


# ---- handing in


def test_job_is_a_row_when_its_answer_comes_and_runs(me: httpx.Client, db: Conn, bench: Bench) -> None:
    answer = me.post("/v1/jobs", json=CALL)
    assert answer.status_code == 202
    job_id = answer.json()["id"]
    assert answer.json() == {"id": job_id, "href": f"/v1/jobs/{job_id}"}
    assert answer.headers["location"] == f"/v1/jobs/{job_id}"
    assert db.execute("SELECT task, caller FROM jobs WHERE id = %s", (job_id,)).fetchone() == (ADD, "me")
    assert eventually(bench.work) == [job_id]
    told = me.get(answer.headers["location"]).json()
    assert (told["state"], told["result"], told["caller"]) == ("succeeded", 3, "me")


def test_every_option_of_a_call_reaches_the_row(me: httpx.Client, db: Conn) -> None:
    job_id = post(me, kwargs={}, queue="default", priority=2, delay="90s", expires=3600, max_attempts=4, unique="only",
                  metadata={"order": 7})  # fmt: skip
    told = me.get(f"/v1/jobs/{job_id}").json()
    assert (told["state"], told["queue"], told["priority"], told["max_attempts"]) == ("scheduled", "default", 2, 4)
    assert told["metadata"] == {"order": 7}
    assert told["expires_at"] > told["available_at"] > told["created_at"]
    assert post(me, unique="only") == job_id


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({"task": "nowhere"}, 422, "unknown_task", "task"),
        ({"args": [1]}, 422, "invalid_job", "task"),
        ({**CALL, "args": [1, "2"]}, 422, "invalid_arguments", "args.1"),
        ({**CALL, "args": [1]}, 422, "invalid_arguments", "kwargs.y"),
        ({**CALL, "queue": "nowhere"}, 422, "unknown_queue", "queue"),
        ({**CALL, "priority": 10}, 422, "invalid_job", "priority"),
        ({**CALL, "delay": "soon"}, 422, "invalid_job", "delay"),
        ({**CALL, "delay": 1, "at": "2030-01-01T00:00:00Z"}, 422, "invalid_job", "at"),
        ({**CALL, "colour": "red"}, 422, "invalid_job", "colour"),
        ({**CALL, "caller": "admin"}, 422, "invalid_job", "caller"),
        ({**CALL, "idempotency_key": "k"}, 422, "invalid_job", "idempotency_key"),
        ({**CALL, "task": tasks.plain.name, "args": [1]}, 422, "unknown_task", "task"),
        ({**CALL, "metadata": {"a": "x" * 5000}}, 422, "invalid_job", "metadata"),
        ([], 422, "invalid_job", None),
    ],
)  # fmt: skip
def test_call_that_cannot_be_is_refused_at_the_door_with_its_field(
    me: httpx.Client, db: Conn, body: Any, status: int, code: str, field: str | None
) -> None:
    problem(me.post("/v1/jobs", json=body), status, code, field)
    assert count(db) == 0


# ---- handing in once


def test_repeat_with_its_key_is_answered_as_the_first_and_makes_one_job(me: httpx.Client, db: Conn) -> None:
    first = me.post("/v1/jobs", json=CALL, headers={"Idempotency-Key": '"8e03978e"'})
    again = me.post("/v1/jobs", json=CALL, headers={"Idempotency-Key": '"8e03978e"'})
    bare = me.post("/v1/jobs", json=CALL, headers={"Idempotency-Key": "8e03978e"})
    assert {(a.status_code, a.content, a.headers["location"]) for a in (first, again, bare)} == {
        (202, first.content, first.headers["location"])
    }
    assert count(db) == 1


def test_same_key_for_another_payload_is_a_conflict(me: httpx.Client, db: Conn) -> None:
    me.post("/v1/jobs", json=CALL, headers={"Idempotency-Key": "k"})
    answer = me.post("/v1/jobs", json={**CALL, "args": [3, 4]}, headers={"Idempotency-Key": "k"})
    problem(answer, 422, "idempotency_conflict", "idempotency_key")
    assert count(db) == 1


@pytest.mark.parametrize("key", ["", '"open', "with space", "x" * 256, "\u00e9"])
def test_key_that_is_none_is_refused(me: httpx.Client, db: Conn, key: str) -> None:
    answer = me.post("/v1/jobs", json=CALL, headers={"Idempotency-Key": key.encode()})  # type: ignore[dict-item]
    problem(answer, 400, "invalid_idempotency_key", "Idempotency-Key")
    assert count(db) == 0


def test_keys_are_each_callers_own(door: Door, me: httpx.Client, db: Conn) -> None:
    other = door.client(key_for("other"))
    ids = {client.post("/v1/jobs", json=CALL, headers={"Idempotency-Key": "k"}).json()["id"] for client in (me, other)}
    assert len(ids) == 2


def test_key_whose_first_request_is_not_answered_is_a_409(door: Door, me: httpx.Client, db: Conn) -> None:
    with psycopg.connect(db.info.dsn, password=db.info.password) as blocker:
        blocker.execute("LOCK TABLE job_keys")
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(me.post, "/v1/jobs", json=CALL, headers={"Idempotency-Key": "k"})
            eventually(lambda: door.gateway.in_flight)
            answer = door.client(me.headers["authorization"].split()[1]).post(
                "/v1/jobs", json=CALL, headers={"Idempotency-Key": "k"}
            )
            problem(answer, 409, "idempotency_in_flight", "Idempotency-Key")
            assert answer.headers["retry-after"] == "1"
            blocker.rollback()
            assert first.result().status_code == 202
    assert not door.gateway.in_flight
    assert count(db) == 1


def test_many_at_once_with_few_keys_make_one_job_a_key(door: Door, me: httpx.Client, db: Conn) -> None:
    """Also where two with one key come together, and through two gateways."""
    second = Door().start()
    clients = (me, second.client(me.headers["authorization"].split()[1]))
    ids: dict[int, set[str]] = {n: set() for n in range(5)}
    lock = threading.Lock()

    def hand_in(n: int) -> None:
        while True:
            call, key = {"task": ADD, "args": [n % 5, 0]}, f"key-{n % 5}"
            answer = clients[n % 2].post("/v1/jobs", json=call, headers={"Idempotency-Key": key})
            if answer.status_code == 409:
                continue
            assert answer.status_code == 202, answer.text
            with lock:
                ids[n % 5].add(answer.json()["id"])
            return

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(hand_in, range(60)))
    second.stop()
    assert [len(found) for found in ids.values()] == [1] * 5
    assert count(db) == 5


# ---- many


def test_batch_is_accepted_as_one_and_tells_each_id(me: httpx.Client, db: Conn) -> None:
    answer = me.post("/v1/jobs:batch", json={"jobs": [{"task": ADD, "args": [n, 1]} for n in range(50)], "all": True})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["accepted"], told["refused"]) == (50, 0)
    rows = {row[0]: row[1] for row in db.execute("SELECT id, args FROM jobs").fetchall()}
    assert [rows[item["id"]] for item in told["items"]] == [f"({n}, 1)" for n in range(50)]


def test_batch_of_all_or_none_names_the_bad_one_and_accepts_nothing(me: httpx.Client, db: Conn) -> None:
    answer = me.post("/v1/jobs:batch", json={"jobs": [CALL, {**CALL, "args": [1, "2"]}], "all": True})
    problem(answer, 422, "invalid_arguments", "jobs.1.args.1")
    assert count(db) == 0


def test_batch_of_each_for_itself_tells_what_became_of_each(me: httpx.Client, db: Conn) -> None:
    jobs = [CALL, {"task": "nowhere"}, {**CALL, "idempotency_key": "k"}, {**CALL, "idempotency_key": "k"},
            {**CALL, "args": [9, 9], "idempotency_key": "k"}, "what?"]  # fmt: skip
    told = me.post("/v1/jobs:batch", json={"jobs": jobs}).json()
    assert (told["accepted"], told["refused"]) == (3, 3)
    codes = [item.get("problem", {}).get("code") for item in told["items"]]
    assert codes == [None, "unknown_task", None, None, "idempotency_conflict", "invalid_job"]
    assert told["items"][2] == told["items"][3]
    assert count(db) == 2


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({}, 422, "invalid_request", "jobs"),
        ({"jobs": []}, 422, "invalid_request", "jobs"),
        ({"jobs": {}}, 422, "invalid_request", "jobs"),
        ({"jobs": [CALL], "all": "yes"}, 422, "invalid_request", "all"),
        ({"jobs": [CALL], "atomic": True}, 422, "invalid_request", "atomic"),
        ({"jobs": [CALL] * 10_001}, 413, "batch_too_large", "jobs"),
    ],
)  # fmt: skip
def test_batch_that_is_none_is_refused(
    me: httpx.Client, db: Conn, body: Any, status: int, code: str, field: str
) -> None:
    problem(me.post("/v1/jobs:batch", json=body), status, code, field)
    assert count(db) == 0


# ---- looking


def test_waiting_answer_comes_with_the_end_of_the_job(me: httpx.Client, bench: Bench) -> None:
    job_id = post(me)
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(me.get, f"/v1/jobs/{job_id}", params={"wait": "30s"})
        time.sleep(0.3)
        assert not answer.done()
        eventually(bench.work)
        assert answer.result().json()["state"] == "succeeded"
    assert time.monotonic() - began < 20


def test_waiting_answer_comes_after_its_time_all_the_same(me: httpx.Client) -> None:
    job_id = post(me, delay=3600)
    assert me.get(f"/v1/jobs/{job_id}", params={"wait": "300ms"}).json()["state"] == "scheduled"
    assert me.get(f"/v1/jobs/{job_id}?wait=0").status_code == 200


def test_many_who_poll_and_wait_for_one_job_share_the_look_at_postgres(door: Door, me: httpx.Client, db: Conn) -> None:
    job_id = post(me, delay=3600)
    looked = 0
    look = door.gateway.celery.backend._from_ledger

    def counted(ids: list[str]) -> Any:
        nonlocal looked
        looked += 1
        return look(ids)

    door.gateway.celery.backend._from_ledger = counted
    try:
        began = time.monotonic()

        def poll(n: int) -> int:
            return me.get(f"/v1/jobs/{job_id}", params={"wait": "1500ms"} if n % 2 else {}).status_code

        with ThreadPoolExecutor(40) as pool:
            assert set(pool.map(poll, range(200))) == {200}
        seconds = time.monotonic() - began
    finally:
        del door.gateway.celery.backend._from_ledger
    assert looked <= 2 * seconds + 3


def test_jobs_are_listed_page_by_page_and_by_filters(me: httpx.Client, admin: httpx.Client, bench: Bench) -> None:
    ids = [post(me, args=[n, 0]) for n in range(5)]
    eventually(bench.work)
    waiting = post(me, delay=3600)
    first = me.get("/v1/jobs", params={"limit": 4}).json()
    rest = me.get("/v1/jobs", params={"limit": 4, "cursor": first["next"]}).json()
    assert rest["next"] is None
    assert {job["id"] for page in (first, rest) for job in page["jobs"]} == {*ids, waiting}
    (found,) = me.get("/v1/jobs", params={"state": "scheduled", "task": ADD, "since": "2020-01-01T00:00:00Z"}).json()["jobs"]
    assert found["id"] == waiting
    assert me.get("/v1/jobs", params={"search": ids[2]}).json()["jobs"][0]["id"] == ids[2]
    assert me.get("/v1/jobs", params={"until": "2020-01-01T00:00:00Z"}).json()["jobs"] == []
    assert len(admin.get("/v1/jobs", params={"caller": "me", "queue": "default"}).json()["jobs"]) == 6


@pytest.mark.parametrize(
    ("query", "field"),
    [("state=done", "0"), ("limit=0", "limit"), ("limit=x", "limit"), ("since=yesterday", "since"), ("cursor=x", "cursor"),
     ("stat=queued", "stat"), ("search=%00", "search"), ("until=2020-13-01T00:00:00Z", "until")],
)  # fmt: skip
def test_parameter_that_cannot_be_is_named(me: httpx.Client, query: str, field: str) -> None:
    problem(me.get(f"/v1/jobs?{query}"), 422, "invalid_request", field)


# ---- acting


def test_waiting_job_is_cancelled_and_run_again(me: httpx.Client, bench: Bench) -> None:
    job_id = post(me, delay=3600)
    assert me.post(f"/v1/jobs/{job_id}:cancel").json() == {"id": job_id, "done": "cancelled"}
    assert me.get(f"/v1/jobs/{job_id}").json()["state"] == "cancelled"
    problem(me.post(f"/v1/jobs/{job_id}:cancel"), 409, "not_cancellable")
    assert me.post(f"/v1/jobs/{job_id}:retry").json() == {"id": job_id, "done": "queued again"}
    assert me.get(f"/v1/jobs/{job_id}").json()["state"] == "queued"


def test_scheduled_job_is_let_run_now_and_one_that_succeeded_is_not_run_again(me: httpx.Client, relay: Any, bench: Bench) -> None:
    job_id = post(me, delay=3600)
    assert me.post(f"/v1/jobs/{job_id}:retry").json()["done"] == "due now"

    def ran() -> list[str]:
        relay.round()
        return bench.work()

    assert eventually(ran) == [job_id]
    problem(me.post(f"/v1/jobs/{job_id}:retry"), 409, "not_retryable")


# ---- following


def follow(client: httpx.Client, job_id: str, last: str = "", **params: str) -> list[dict[str, str]]:
    """Return the events of a stream until it ends."""
    events: list[dict[str, str]] = []
    headers = {"Last-Event-ID": last} if last else {}
    with client.stream("GET", f"/v1/jobs/{job_id}/events", params=params, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream"), answer.read()
        event: dict[str, str] = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if line.startswith(":"):
                continue
            if line:
                event[name] = value
            else:
                events += [event] if "event" in event else []
                event = {}
    return events


def states(events: list[dict[str, str]]) -> list[str]:
    return [json.loads(event["data"])["state"] for event in events if event["event"] == "state"]


def test_job_is_followed_to_its_end_and_from_any_event_on(me: httpx.Client, bench: Bench) -> None:
    job_id = post(me)
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(follow, me, job_id)
        time.sleep(0.3)
        eventually(bench.work)
        events = stream.result(20)
    assert states(events) == ["accepted", "running", "succeeded"]
    assert states(follow(me, job_id, events[0]["id"])) == ["running", "succeeded"]
    over = me.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": events[-1]["id"]})
    assert over.status_code == 204


def test_job_is_followed_on_at_another_gateway(door: Door, me: httpx.Client, bench: Bench) -> None:
    job_id = post(me)
    begun = follow(me, job_id, wait="100ms")
    assert states(begun) == ["accepted"]
    door.server.should_exit = True
    eventually(bench.work)
    other = Door().start()
    try:
        client = other.client()
        client.headers["Authorization"] = me.headers["Authorization"]
        assert states(follow(client, job_id, begun[-1]["id"])) == ["running", "succeeded"]
        assert states(follow(client, job_id)) == ["accepted", "running", "succeeded"]
    finally:
        other.stop()


def test_events_of_a_stream_are_those_that_were_written(me: httpx.Client, db: Conn, bench: Bench) -> None:
    job_id = post(me)
    eventually(bench.work)
    written = db.execute("SELECT id::text, at FROM job_events WHERE job_id = %s ORDER BY id", (job_id,)).fetchall()
    events = follow(me, job_id)
    assert [event["id"] for event in events] == [event_id for event_id, _ in written]
    assert [datetime.fromisoformat(json.loads(event["data"])["at"]) for event in events] == [at for _, at in written]


def test_job_without_written_events_is_told_of_by_its_row(me: httpx.Client, db: Conn, bench: Bench) -> None:
    ledger_events.set_level(db, "off")
    job_id = post(me)
    begun = follow(me, job_id, wait="100ms")
    ledger_events.set_level(db, "callers")
    assert states(begun) == ["accepted"]
    eventually(bench.work)
    assert states(follow(me, job_id, begun[-1]["id"])) == ["running", "succeeded"]


def test_stream_ends_after_its_time_and_with_the_gateway(door: Door, me: httpx.Client) -> None:
    job_id = post(me, delay=3600)
    assert states(follow(me, job_id, wait="200ms")) == ["accepted"]
    with ThreadPoolExecutor(2) as pool:
        stream = pool.submit(follow, me, job_id)
        poll = pool.submit(me.get, f"/v1/jobs/{job_id}", params={"wait": "50s"})
        eventually(lambda: door.gateway.watch._jobs.get(job_id) and door.gateway.watch._jobs[job_id].waiting == 2)
        door.server.should_exit = True
        assert states(stream.result(10)) == ["accepted"]
        assert poll.result(10).json()["state"] == "scheduled"


# ---- the system


def test_tasks_are_listed_with_the_schema_of_their_arguments(me: httpx.Client) -> None:
    told = {task["name"]: task for task in me.get("/v1/tasks").json()["tasks"]}
    assert told[ADD]["queue"] == "default"
    assert told[ADD]["arguments"]["properties"]["x"]["type"] == "integer"
    assert told[ADD]["arguments"]["required"] == ["x", "y"]
    assert ECHO in told
    assert not any(name.startswith("celery.") for name in told)


def test_system_is_looked_at(me: httpx.Client, admin: httpx.Client, bench: Bench) -> None:
    post(me)
    (queue,) = [queue for queue in me.get("/v1/queues").json()["queues"] if queue["queue"] == "default"]
    assert (queue["sent"] + queue["backlog"], queue["paused"]) == (1, False)
    assert me.get("/v1/stats").json()["backlog"]["queues"][0]["waiting"] == 1
    assert admin.get("/v1/schedules").json()["items"] == []
    assert admin.get("/v1/usage", params={"by": ["model", "day"]}).json() == {"items": []}
    assert "holdfast_http_requests_total" in me.get("/metrics").text


def test_health_needs_no_key(door: Door) -> None:
    anybody = door.client()
    assert anybody.get("/healthz").json() == {"status": "alive"}
    assert anybody.get("/readyz").json() == {"status": "ready", "postgres": "ready", "redis": "ready"}
