"""The gateway killed under load: every answer holds, and no repeat makes a second job."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg

from tests.chaos.support import sized
from tests.harness import Gateway
from tests.openapi import run_schemathesis
from worker.db import statement
from worker.ledger import callers

ADD = "tests.sample_tasks.add"


class Client(threading.Thread):
    """A client that hands in jobs, and repeats each request with its key until it is answered."""

    def __init__(self, url: str, key: str, number: int) -> None:
        super().__init__(daemon=True)
        self.url, self.key, self.number = url, key, number
        self.stopping = False
        #: By key: every id it was answered with.
        self.answers: dict[str, list[str]] = {}
        self.strange: list[str] = []

    def run(self) -> None:
        http = httpx.Client(headers={"Authorization": f"Bearer {self.key}"}, verify=False, trust_env=False, timeout=5)
        while not self.stopping:
            key = str(uuid4())
            self.hand_in(http, key)
            if key.startswith("0"):  # again, although it was answered
                self.hand_in(http, key)
        http.close()

    def hand_in(self, http: httpx.Client, key: str) -> None:
        call = {"task": ADD, "args": [self.number, len(self.answers)], "metadata": {"key": key}}
        if key in self.answers:
            call["args"] = [self.number, len(self.answers) - 1]
        while not self.stopping:
            try:
                answer = http.post(f"{self.url}/v1/jobs", json=call, headers={"Idempotency-Key": key})
            except httpx.HTTPError:
                time.sleep(0.02)
                continue
            if answer.status_code == 202:
                self.answers.setdefault(key, []).append(answer.json()["id"])
                return
            if answer.status_code not in (409, 503):
                self.strange.append(answer.text)
                return
            time.sleep(0.02)


def kill_under_load(gateway: Gateway, key: str, times: int, *, clients: int = 4, load_s: float = 0.5) -> list[Client]:
    """Kill the gateway so many times under load, and return the clients once all is quiet and it runs again."""
    running = [Client(gateway.url, key, number) for number in range(clients)]
    for one in running:
        one.start()
    for _ in range(times):
        time.sleep(load_s)
        gateway.kill()
        gateway.start()
    time.sleep(load_s)
    for one in running:
        one.stopping = True
    for one in running:
        one.join(20)
    return running


def check_all_is_there_once(running: list[Client], db: psycopg.Connection[Any]) -> int:
    """Check that each key stands for one job that is there, and that nothing else is; return how many were answered."""
    rows = db.execute("SELECT id, metadata ->> 'key' FROM jobs").fetchall()
    by_key: dict[str, list[str]] = {}
    for job_id, key in rows:
        by_key.setdefault(key, []).append(job_id)
    assert [key for key, ids in by_key.items() if len(ids) > 1] == [], "a key made two jobs"
    assert [text for one in running for text in one.strange] == []
    answered = {key: ids for one in running for key, ids in one.answers.items()}
    assert {key for key, ids in answered.items() if set(ids) != set(by_key.get(key, []))} == set(), "answered and not there"
    unanswered = set(by_key) - set(answered)
    assert len(unanswered) <= len(running), "only the last request of a client may be there without an answer"
    return len(answered)


def test_killed_under_load_every_answer_holds_and_no_repeat_makes_a_second_job(
    launch: Callable[[Gateway], Gateway], env: dict[str, str]
) -> None:
    gateway = launch(Gateway(include="tests.sample_tasks"))
    with statement() as conn:
        key = callers.add(conn, "me", scopes=["enqueue"])
    with psycopg.connect(env["DATABASE_URL"], autocommit=True) as db:
        running = kill_under_load(gateway, key, sized(2, 20), load_s=sized(0.5, 2.0))
        assert check_all_is_there_once(running, db) > sized(5, 200)


def test_openapi_document_holds_for_ten_minutes(
    launch: Callable[[Gateway], Gateway], rng: random.Random, env: dict[str, str], tmp_path: Path
) -> None:
    """At small size this is one more seed; `tests/acceptance` has the same with a fixed one."""
    gateway = launch(Gateway(include="tests.sample_tasks", env={"HOLDFAST_GATEWAY_WAIT_S": "0.3"}))
    with statement() as conn:
        key = callers.add(conn, "fuzz", scopes=["admin"])
    tasks = [f"tests.sample_tasks.{name}" for name in ("echo", "noop")]
    run_schemathesis(gateway.url, key, tasks, tmp_path, seconds=sized(2, 600), seed=rng.randrange(10**9))
