"""Fixtures of the acceptance tests: a house that the tests of a file share, with its servers, its database and a relay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests import harness
from tests.harness import Program, Relay, Worker, eventually
from worker.embedded import Stack
from worker.ledger.message import wire
from worker.store import keys

#: Everything that is waited for comes sooner than in production; what waits for it is not loosened.
SETTINGS = {
    "HOLDFAST_INCLUDE": "tests.sample_tasks", "HOLDFAST_RELAY_INTERVAL_S": "0.1", "HOLDFAST_AUDIT_AFTER_S": "2",
    "HOLDFAST_NODE_BEAT_S": "0.5", "HOLDFAST_NODE_DEAD_S": "3", "HOLDFAST_LEASE_S": "3",
}  # fmt: skip

CREATE = "CREATE TABLE ran (job_id text, label text, at timestamptz DEFAULT clock_timestamp())"


class House:
    """The servers and the database that the tests of one file share."""

    def __init__(self, stack: Stack, database_url: str) -> None:
        self.stack, self.database_url = stack, database_url
        self.redis, self.cache = Redis.from_url(stack.redis.url), Redis.from_url(stack.cache.url)
        self._conn = psycopg.connect(database_url, autocommit=True)
        self._started: list[Program] = []

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        cursor = self._conn.execute(query, values)
        return cursor.fetchall() if cursor.description else []

    def start(self, program: harness.Program) -> Any:
        """Start a program that lives no longer than the house."""
        self._started.append(program)
        try:
            return program.start()
        except AssertionError:
            program.kill_tree()  # late is not welcome either: it would take part in other tests
            raise

    def worker(self, pool: str = "prefork", concurrency: int = 2, *args: str, **options: Any) -> Worker:
        """Start a worker."""
        plain = ("--without-gossip", "--without-mingle", "--without-heartbeat")
        worker: Worker = self.start(Worker(*plain, *args, pool=pool, concurrency=concurrency, **options))
        return worker

    def state(self, job_id: str) -> str:
        """Return the state of a job by its row."""
        rows = self.sql("SELECT state FROM jobs WHERE id = %s", job_id) or self.sql(
            "SELECT state FROM job_history WHERE id = %s ORDER BY finished_at DESC LIMIT 1", job_id
        )
        return str(rows[0][0]) if rows else "unknown"

    def labels(self, job_id: str) -> list[str]:
        """Return what a job's committed attempts have left in the table `ran`."""
        return [row[0] for row in self.sql("SELECT label FROM ran WHERE job_id = %s ORDER BY at", job_id)]

    def wait_for(self, job_id: str, *states: str, timeout: float = 15) -> str:
        """Wait until a job is in one of these states and return which."""
        return eventually(lambda: (now := self.state(job_id)) in states and now, timeout, what=f"{job_id} being {states}")

    def deliver_again(self, job_id: str) -> None:
        """Push a living job's message once more by hand."""
        ((message, queue, priority, revision, now_ms),) = self.sql(
            "SELECT message, queue, priority, revision, extract(epoch FROM clock_timestamp()) * 1000 FROM jobs WHERE id = %s",
            job_id,
        )
        self.redis.lpush(keys.queue(queue, priority), wire(message, queue, priority, revision, int(now_ms)))

    def end(self) -> None:
        """End everything started here."""
        for program in self._started:
            program.kill_tree()
        self._conn.close()


@pytest.fixture(scope="module")
def house(stack: Stack, template: str, request: pytest.FixtureRequest) -> Iterator[House]:
    """Emptied servers and a database of this file's own, pointed at by this process, and a relay; with the file's `SETTINGS`."""
    name = f"acceptance_{request.module.__name__.rpartition('.')[2]}"
    with pytest.MonkeyPatch.context() as patch:
        url = harness.create_database(stack.postgres.url, name, template)
        for variable, value in {
            **SETTINGS,
            **getattr(request.module, "SETTINGS", {}),
            "DATABASE_URL": url,
            "REDIS_URL": stack.redis.url,
            "CACHE_URL": stack.cache.url,
        }.items():
            patch.setenv(variable, value)
        harness.forget()
        house = House(stack, url)
        house.redis.flushall()
        house.cache.flushall()
        house.sql(CREATE)
        house.start(Relay())
        yield house
        house.end()
        harness.forget()
    harness.drop_database(stack.postgres.url, name)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """A file in which tasks leave lines."""
    return Log(tmp_path / "log")


class Log:
    """A file in which tasks leave lines; as text its path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []
