"""The gateway as a process: what it logs, and how it ends."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.harness import Gateway, eventually
from tests.openapi import run_schemathesis
from worker.db import statement
from worker.ledger import callers

ADD = "tests.sample_tasks.add"
INCLUDE = "tests.sample_tasks"
BLOCKED = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
def db(env: dict[str, str]) -> Iterator[psycopg.Connection[Any]]:
    """An own connection to the test's database, in autocommit mode."""
    with psycopg.connect(env["DATABASE_URL"], autocommit=True) as conn:
        yield conn


def key_for(name: str, *scopes: str) -> str:
    with statement() as conn:
        return callers.add(conn, name, scopes=scopes or ("enqueue", "read"))


def client(gateway: Gateway, key: str, **options: Any) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=gateway.url, headers=headers, verify=False, trust_env=False, **{"timeout": 30, **options})


@pytest.mark.parametrize("as_json", [True, False])
def test_nothing_from_outside_makes_a_line_in_the_log(launch: Callable[[Gateway], Gateway], as_json: bool) -> None:
    gateway = launch(Gateway(env={"HOLDFAST_LOG_JSON": str(as_json), "HOLDFAST_LOG_LEVEL": "INFO"}))
    at = len(gateway.log())
    evil = "/v1/jobs/x%0a2026-01-01%20%5Berror%5D%20forged%1b%5B31m%00%e2%80%a8"
    with client(gateway, "hf_\x7f") as http:
        assert http.get(evil).status_code == 401
    line = eventually(lambda: gateway.log()[at:] if "refused" in gateway.log()[at:] else None)
    assert line.count("\n") == 1
    assert line.count("\r") == line.count("\x1b") == line.count("\x00") == 0
    assert "forged" in line
    if as_json:
        told = json.loads(line)
        assert (told["level"], told["status"], told["event"]) == ("warning", 401, "a request was refused")


def test_asked_to_end_it_answers_what_it_has_begun_and_lets_nobody_wait(
    launch: Callable[[Gateway], Gateway], env: dict[str, str], db: Any
) -> None:
    gateway = launch(Gateway(include=INCLUDE))
    key = key_for("me")
    with client(gateway, key) as http, ThreadPoolExecutor(8) as pool:
        job_id = http.post("/v1/jobs", json={"task": ADD, "args": [1, 2], "delay": 3600}).json()["id"]
        poll = pool.submit(http.get, f"/v1/jobs/{job_id}", params={"wait": "50s"})
        stream = pool.submit(http.get, f"/v1/jobs/{job_id}/events")
        with psycopg.connect(env["DATABASE_URL"]) as blocker:
            blocker.execute("LOCK TABLE jobs IN SHARE MODE")
            begun = [pool.submit(http.post, "/v1/jobs", json={"task": ADD, "args": [n, 0]}) for n in range(4)]
            eventually(lambda: db.execute(BLOCKED).fetchone() == (True,), 15)
            time.sleep(1)  # the others have been read as well
            gateway.signal(signal.SIGTERM)
            assert poll.result(15).json()["state"] == "scheduled"
            assert "accepted" in stream.result(15).text
            assert not any(one.done() for one in begun)
            blocker.rollback()
        ids = {one.result(15).json()["id"] for one in begun}
    assert gateway.wait(15) == 0
    assert db.execute("SELECT count(*) FROM jobs WHERE id = ANY(%s)", (list(ids),)).fetchone() == (4,)


def test_openapi_document_holds_against_requests_made_from_it(launch: Callable[[Gateway], Gateway], tmp_path: Path) -> None:
    gateway = launch(Gateway(include=INCLUDE, env={"HOLDFAST_GATEWAY_WAIT_S": "0.3"}))
    tasks = [f"{INCLUDE}.{name}" for name in ("echo", "noop")]
    run_schemathesis(gateway.url, key_for("fuzz", "admin"), tasks, tmp_path, seconds=8, seed=11)
