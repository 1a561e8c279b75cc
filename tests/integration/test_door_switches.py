"""A switch `door:NAME` reaches the jobs of each door: they are accepted, and wait until it is on again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests.integration.conftest import Bench
from tests.integration.door import ADD, Door, key_for
from tests.integration.door import door as door
from worker.app import app
from worker.cli.program import invoke
from worker.db import statement
from worker.engine.intake import Intake
from worker.engine.registry import register_tasks
from worker.engine.relay import Relay
from worker.ledger import flags
from worker.live import flag
from worker.store import keys

Conn = psycopg.Connection[Any]

CALL = {"task": ADD, "args": [1, 2]}


@pytest.fixture
def hand_in(door: Door, db: Conn, redis: Redis, tmp_path: Path) -> Callable[[str], None]:
    """Hand a job in by a door of this name."""
    register_tasks(app)
    intake = Intake(app)

    def by_http() -> None:
        assert door.client(key_for("me")).post("/v1/jobs", json=CALL).status_code == 202

    def by_sql() -> None:
        db.execute("SELECT holdfast.enqueue(%s, '[1, 2]')", (ADD,))

    def by_stream() -> None:
        redis.xadd(keys.intake(), {"task": ADD, "args": "[1, 2]"})
        intake.round()

    def by_import() -> None:
        (tmp_path / "jobs.jsonl").write_text(json.dumps(CALL) + "\n")
        assert invoke(["import", str(tmp_path / "jobs.jsonl")]) == 0

    doors = {"http": by_http, "sql": by_sql, "stream": by_stream, "import": by_import}
    return lambda name: doors[name]()


@pytest.mark.parametrize("name", ["http", "sql", "stream", "import"])
def test_switch_of_a_door_holds_its_jobs_back_and_lets_them_go(
    hand_in: Callable[[str], None], relay: Relay, bench: Bench, db: Conn, name: str
) -> None:
    put(f"door:{name}", on=False)
    hand_in(name)
    rounds(relay)
    bench.work()
    assert db.execute("SELECT state, attempt FROM jobs").fetchall() == [("scheduled", 0)]
    with statement() as conn:
        assert [(row["name"], row["parked"]) for row in flags.listed(conn)] == [(f"door:{name}", 1)]
    put(f"door:{name}", on=True)
    rounds(relay)
    bench.work()
    assert db.execute("SELECT state, attempt FROM job_history").fetchall() == [("succeeded", 1)]


def put(name: str, *, on: bool) -> None:
    """Set a switch and let this process know it at once."""
    with statement() as conn:
        flags.put(conn, flag(name, on=on), actor="test")
    flags.feed().look()


def rounds(relay: Relay) -> None:
    """Let the relay do whatever it has to do."""
    for _ in range(3):
        relay._next = [0.0] * len(relay._next)
        relay.round()
