"""The gateway without Redis, without Postgres, and with jobs that cannot be stored among others that can."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest

from tests.harness import eventually
from tests.integration.door import ADD, ECHO, Door, key_for, problem
from tests.integration.door import door as door
from tests.integration.door import me as me
from worker.app import app
from worker.embedded import Stack
from worker.engine.calls import Call, new_job
from worker.errors import IdempotencyConflict, InvalidJob, LedgerUnavailable
from worker.ledger.group import accept_group
from worker.telemetry import LIMIT_OUTAGES

Conn = psycopg.Connection[Any]
CALL = {"task": ADD, "args": [1, 2]}


def test_jobs_are_accepted_without_redis(door: Door, me: httpx.Client, stack: Stack, db: Conn) -> None:
    stack.redis.kill()
    stack.cache.kill()
    ids = {me.post("/v1/jobs", json=CALL).json()["id"] for _ in range(3)}
    ids |= {item["id"] for item in me.post("/v1/jobs:batch", json={"jobs": [CALL] * 3}).json()["items"]}
    assert len(ids) == 6
    rows = db.execute("SELECT count(*) FROM jobs WHERE dispatch_epoch IS NULL").fetchone()
    assert rows == (6,)
    job_id = ids.pop()
    assert me.get(f"/v1/jobs/{job_id}", params={"wait": "200ms"}).json()["state"] == "queued"
    told = eventually(lambda: (answer := me.get("/readyz")).json()["redis"] == "away" and answer)
    assert (told.status_code, told.json()["status"]) == (200, "ready")


def test_rate_is_shared_out_without_redis_and_that_is_counted(door: Door, stack: Stack, conf: Callable[..., None]) -> None:
    client = door.client(key_for("shared", rate="80/minute"))
    assert client.post("/v1/jobs", json=CALL).status_code == 202
    stack.redis.kill()
    counted = LIMIT_OUTAGES.labels("caller", "local")
    before = counted._value.get()
    statuses = [client.post("/v1/jobs", json=CALL).status_code for _ in range(30)]
    assert statuses.count(202) in range(1, 20), "an eighth of the rate, for this one of eight processes"
    assert statuses[-1] == 429
    assert counted._value.get() > before


def test_nothing_is_accepted_without_postgres_and_that_is_a_503(
    door: Door, me: httpx.Client, stack: Stack, db: Conn, env: dict[str, str]
) -> None:
    assert me.post("/v1/jobs", json=CALL).status_code == 202
    stack.postgres.kill()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: me.post("/v1/jobs", json=CALL), range(8)))
    for answer in [*answers, me.post("/v1/jobs:batch", json={"jobs": [CALL]}), me.get("/v1/jobs/x")]:
        problem(answer, 503, "ledger_unavailable")
        assert answer.headers["retry-after"] == "1"
    answer = me.get("/readyz")
    problem(answer, 503, "not_ready")
    assert me.get("/healthz").status_code == 200
    stack.postgres.start()
    eventually(lambda: me.post("/v1/jobs", json=CALL, headers={"Idempotency-Key": "k"}).status_code == 202)
    with psycopg.connect(env["DATABASE_URL"]) as conn:
        assert conn.execute("SELECT count(*) FROM jobs").fetchone() == (2,)


# ---- groups


def job(key: str | None = None, unique: str | None = None, **call: Any) -> Any:
    app.finalize()
    return new_job(app, Call(**{**CALL, **call}, idempotency_key=key, unique=unique, caller="me"))  # type: ignore[arg-type]


def outcomes_of(jobs: list[Any]) -> list[Any]:
    outcomes: list[Any] = []
    accept_group(jobs, outcomes.extend)
    return outcomes


def test_bad_row_does_not_fail_its_neighbours(db: Conn) -> None:
    jobs = [job(), job(), job("k"), job()]
    jobs[1].queue = "a\0b"  # what Postgres cannot keep
    first, bad, keyed, last = outcomes_of(jobs)
    assert isinstance(bad, InvalidJob)
    assert {row[0] for row in db.execute("SELECT id FROM jobs").fetchall()} == {first, keyed, last}


def test_two_with_one_key_in_a_group_are_one_job_and_another_payload_is_a_conflict(db: Conn) -> None:
    one, two, other, plain, three = outcomes_of([job("k"), job("k"), job("k", args=[9, 9]), job(), job("k")])
    assert one == two == three
    assert isinstance(other, IdempotencyConflict)
    assert {row[0] for row in db.execute("SELECT id FROM jobs").fetchall()} == {one, plain}
    assert outcomes_of([job("k")]) == [one]
    assert isinstance(outcomes_of([job("k", args=[9, 9]), job()])[0], IdempotencyConflict)


def test_unique_jobs_in_a_group_find_the_active_one(db: Conn) -> None:
    one, two, keyed = outcomes_of([job(unique="u"), job(unique="u"), job("k", unique="u")])
    assert one == two == keyed
    assert outcomes_of([job("k", unique="u")]) == [one]
    assert db.execute("SELECT count(*) FROM jobs").fetchone() == (1,)


def test_key_that_has_expired_is_taken_anew(db: Conn) -> None:
    (one,) = outcomes_of([job("k")])
    db.execute("UPDATE job_keys SET expires_at = clock_timestamp() - interval '1 second'")
    (two,) = outcomes_of([job("k", args=[9, 9])])
    assert one != two


def test_groups_with_the_same_keys_do_not_wait_in_a_circle(db: Conn) -> None:
    """Two gateways are handed the same keys, each in another order."""
    names = [str(n) for n in range(40)]
    found: list[list[Any]] = []
    together = threading.Barrier(2)

    def accept(order: list[str]) -> None:
        together.wait()
        for _ in range(5):
            known = dict(zip(order, outcomes_of([job(name, args=[int(name), 0]) for name in order]), strict=True))
            found.append([known[name] for name in names])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(accept, [names, names[::-1]]))
    assert all(ids == found[0] for ids in found)
    assert db.execute("SELECT count(*) FROM jobs").fetchone() == (40,)


def test_group_without_postgres_is_refused_as_a_whole(stack: Stack, db: Conn) -> None:
    jobs = [job(), job("k")]
    stack.postgres.kill()
    assert all(isinstance(outcome, LedgerUnavailable) for outcome in outcomes_of(jobs))


@pytest.mark.parametrize("args", [[{"a": ["x"] * 3}], ["\u0000"], [10**39], [1.5e300], ["\U0001f600"]])
def test_arguments_come_to_the_worker_as_they_were_sent(me: httpx.Client, db: Conn, args: list[Any], bench: Any) -> None:
    job_id = me.post("/v1/jobs", json={"task": ECHO, "args": args}).json()["id"]
    eventually(bench.work)
    assert me.get(f"/v1/jobs/{job_id}").json()["result"] == [args, {}]
