"""Postgres restarted while jobs are accepted and run: what was acknowledged ends, what was not says so."""

from __future__ import annotations

import random
import threading
import time
from typing import Literal

import pytest

from tests.chaos import support, tasks
from tests.chaos.conftest import Start
from tests.chaos.support import assert_all_done_once, sized
from tests.harness import Worker, eventually
from worker.embedded import Stack
from worker.errors import LedgerUnavailable

#: Seconds in which all jobs must end once Postgres is back for good.
END_S = sized(30.0, 120.0)


class Client:
    """Enqueues all the time, and keeps what it was told."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.errors: list[Exception] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            try:
                self.ids.append(tasks.write.delay("load", 0.005).id)
            except Exception as exc:
                self.errors.append(exc)


@pytest.fixture(scope="module")
def worker(arena: Start) -> Worker:
    """A worker, and the relay."""
    worker = support.worker()
    arena(worker)
    return worker


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_every_acknowledged_job_ends_once_though_postgres_restarts_under_load(
    rng: random.Random, worker: Worker, stack: Stack, mode: Literal["fast", "immediate"]
) -> None:
    with Client() as client:
        for _ in range(sized(2, 5)):
            time.sleep(rng.uniform(0.5, 1.5))
            stack.postgres.restart(mode)
        before = len(client.ids)
        eventually(lambda: len(client.ids) > before, what="a job accepted after the last restart")
    assert {type(error) for error in client.errors} <= {LedgerUnavailable}
    support.wait_until_ended(client.ids, END_S)
    assert_all_done_once(client.ids)
    # A commit whose answer was lost is a job as well, though its caller was told of an error.
    eventually(lambda: not support.one("SELECT count(*) FROM jobs"), END_S, what="every job ended")
    assert not support.rows("SELECT job_id FROM chaos_effects GROUP BY job_id HAVING count(*) > 1")
    assert worker.running
