"""A body that puts its job off: nothing of it stays, and no attempt counts."""

from __future__ import annotations

import pickle
from typing import Any

import psycopg
import pytest

from tests.integration.conftest import Bench
from worker.app import app
from worker.db import raw
from worker.engine.relay import Relay
from worker.engine.run import Snooze
from worker.errors import NotInJob

_asked: list[int] = []


@app.task(bind=True, max_attempts=1, name="tests.patient")
def patient(self: Any, times: int) -> str:
    """Find that it is too early so many times, then do its work."""
    raw(self.session).execute("INSERT INTO effects (job_id, name) VALUES (%s, 'tried')", (self.request.id,))
    _asked.append(self.request.retries)
    if len(_asked) <= times:
        self.snooze(60.0, "too early")
    return "done"


def test_job_that_snoozes_keeps_no_write_and_no_attempt_and_runs_later(
    bench: Bench, relay: Relay, db: psycopg.Connection[Any]
) -> None:
    _asked.clear()
    job_id = patient.delay(2).id
    for _ in range(2):
        relay.round()
        bench.work()
        row = db.execute(
            "SELECT state, attempt, error, started_at, available_at > clock_timestamp() + interval '50 seconds' FROM jobs"
        ).fetchone()
        assert row == ("scheduled", 0, "too early", None, True)
        assert db.execute("SELECT count(*) FROM effects").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM attempts").fetchone() == (0,)
        db.execute("UPDATE jobs SET available_at = clock_timestamp()")
    relay.round()
    bench.work()
    assert db.execute("SELECT state, attempt FROM job_history WHERE id = %s", (job_id,)).fetchone() == ("succeeded", 1)
    assert db.execute("SELECT name FROM effects").fetchall() == [("tried",)]


def test_snooze_goes_through_the_pipe_of_a_prefork_pool() -> None:
    again = pickle.loads(pickle.dumps(Snooze(1.5, "too early")))
    assert (again.delay_s, again.why) == (1.5, "too early")


def test_snooze_outside_a_job_is_refused(env: Any) -> None:
    with pytest.raises(NotInJob, match=r"self\.snooze"):
        patient.snooze(1.0, "no job")
