"""The stock commands work unchanged, Flower shows the jobs and sends one, and every key left in Redis is declared."""

from __future__ import annotations

import base64
import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests import harness
from tests import sample_tasks as t
from tests.acceptance.conftest import House
from tests.harness import Program, Worker, eventually
from worker.app import app
from worker.db import statement
from worker.ledger import manage
from worker.store import keys

WAIT = 25


@pytest.fixture(scope="module", autouse=True)
def worker(house: House) -> Worker:
    """A worker that tells of what it does, gossip and all, as one started by hand would."""
    worker: Worker = house.start(Worker("-E", pool="threads"))
    return worker


def celery(*args: str, ends: int = 0) -> str:
    """Run a stock command and return what it printed."""
    run = harness.run("celery", "-A", "worker.app", *args)
    assert run.returncode == ends, run.stdout + run.stderr
    return run.stdout


# ---- remote control


def test_inspect_ping_finds_the_worker() -> None:
    assert "pong" in celery("inspect", "ping", "-t", "3", "-j")


def test_inspect_knows_tasks_queues_and_statistics() -> None:
    inspect = app.control.inspect(timeout=5, limit=1)
    (registered,) = inspect.registered().values()
    assert "tests.sample_tasks.add" in registered
    (queues,) = inspect.active_queues().values()
    assert [queue["name"] for queue in queues] == ["default"]
    (stats,) = inspect.stats().values()
    assert stats["pool"]["max-concurrency"] == 2


def test_active_job_is_inspected(tmp_path: Any) -> None:
    result = t.wait_for.delay(str(tmp_path / "gate"), str(tmp_path / "started"))
    eventually((tmp_path / "started").exists, WAIT)
    (active,) = app.control.inspect(timeout=5, limit=1).active().values()
    assert [request["id"] for request in active] == [result.id]
    (tmp_path / "gate").touch()
    assert result.get(timeout=WAIT) == "done"


def test_revoke_command_cancels_a_waiting_job_for_good_and_it_can_be_replayed(house: House) -> None:
    result = t.add.apply_async((1, 2), countdown=3600)
    celery("control", "revoke", result.id)
    house.wait_for(result.id, "cancelled", timeout=WAIT)
    assert result.state == "REVOKED"
    with statement() as conn:
        manage.replay(conn, result.id)
    assert app.AsyncResult(result.id).get(timeout=WAIT) == 3


def test_call_sends_a_job(house: House) -> None:
    job_id = celery("call", "tests.sample_tasks.add", "--args", "[20, 3]", "--kwargs", "{}").split()[-1]
    assert app.AsyncResult(job_id).get(timeout=WAIT) == 23
    assert house.state(job_id) == "succeeded"


def test_result_command_reads_a_result() -> None:
    job = t.add.delay(2, 3)
    job.get(timeout=WAIT)
    assert celery("result", job.id).strip() == "5"


# ---- Flower


@pytest.fixture(scope="module")
def flower(house: House, worker: Worker) -> Iterator[str]:
    """The URL of a Flower, started as its users start it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Program(
        "-m",
        "celery",
        "-A",
        "worker.app",
        "flower",
        "--address=127.0.0.1",
        f"--port={port}",
        "--basic-auth=user:word",
        name="flower",
    )
    house.start(program)
    url = f"http://127.0.0.1:{port}"
    eventually(lambda: ask(f"{url}/api/workers?refresh=1"), 40, what="Flower answering")
    yield url
    program.kill_tree()


def ask(url: str, body: Any = None, *, auth: str = "user:word") -> Any:
    """Return the JSON that Flower answers."""
    request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode())
    request.add_header("Authorization", "Basic " + base64.b64encode(auth.encode()).decode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def test_flower_lists_the_worker_and_its_tasks(flower: str) -> None:
    (info,) = ask(f"{flower}/api/workers?refresh=1").values()
    assert "tests.sample_tasks.add" in info["registered"]


def test_flower_sees_a_job_run(flower: str) -> None:
    job = t.add.delay(40, 2)
    assert job.get(timeout=WAIT) == 42
    seen = eventually(lambda: (found := ask(f"{flower}/api/task/info/{job.id}"))["state"] == "SUCCESS" and found, WAIT)
    assert (seen["name"], seen["result"]) == ("tests.sample_tasks.add", "42")
    assert job.id in ask(f"{flower}/api/tasks")


def test_flower_sends_a_task_that_becomes_a_job_and_runs(flower: str, house: House) -> None:
    answer = ask(f"{flower}/api/task/async-apply/tests.sample_tasks.add", {"args": [30, 1]})
    job_id = answer["task-id"]
    assert app.AsyncResult(job_id).get(timeout=WAIT) == 31
    assert house.state(job_id) == "succeeded"
    assert (
        eventually(lambda: (found := ask(f"{flower}/api/task/result/{job_id}"))["state"] == "SUCCESS" and found, WAIT)["result"]
        == 31
    )
    assert ask(f"{flower}/api/task/apply/tests.sample_tasks.add", {"args": [1, 2]})["result"] == 3


def test_flower_keeps_out_who_has_no_password(flower: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(f"{flower}/api/task/async-apply/tests.sample_tasks.add", {"args": [1, 1]}, auth="user:wrong")


# ---- what lies in Redis after all that


def test_every_key_is_declared_and_lives_no_longer_than_declared(house: House, flower: str) -> None:
    ids = [t.add.delay(i, i).id for i in range(20)] + [t.fail.delay().id, t.autoretry.delay(1).id]
    for job_id in ids:
        house.wait_for(job_id, "succeeded", "failed", timeout=WAIT)
    assert app.control.ping(timeout=5, limit=1)
    t.add.apply_async((1, 1), countdown=60)
    t.unique.apply_async((1,), countdown=60)
    for role, client in (("coordination", house.redis), ("cache", house.cache)):
        found = {raw.decode(): (client.type(raw).decode(), client.pttl(raw)) for raw in client.scan_iter("*")}  # type: ignore[union-attr]
        assert found, role
        for key, (kind_of, ttl) in found.items():
            if kind_of == "none" or ttl == -2:
                continue  # its life ended while we looked
            kinds = [kind for kind in keys.KINDS if kind.role == role and matches(kind.pattern, key)]
            assert kinds, f"{role}: {key!r} ({kind_of}) is not declared"
            assert kind_of in {kind.type for kind in kinds}, key
            lasting = any(kind.life.startswith(("none", "until consumed")) for kind in kinds)
            assert ttl > 0 or lasting, f"{role}: {key!r} has no time to live"


def matches(pattern: str, key: str) -> bool:
    """Tell whether a key is of a declared kind; `<queue>` stands for the queues there are, other names for anything."""
    if pattern == "<queue>":
        return key in {name for queue in ("default", "celery") for name in keys.queue_lists(queue)}
    return re.fullmatch(re.sub(r"<\w+>", ".+", re.sub(r"[.*+?^${}()|\[\]\\]", r"\\\g<0>", pattern)), key) is not None


def test_control_shutdown_ends_the_worker(worker: Worker) -> None:
    celery("control", "shutdown", ends=69)  # nobody is left to answer
    assert worker.wait(20) == 0
