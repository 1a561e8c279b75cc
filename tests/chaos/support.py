"""What the chaos tests share: seeds, sizes, programs started together, and what must hold when all is over."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import psycopg
from redis import Redis

from tests.harness import READY_S, Program, Worker, eventually
from worker import faults
from worker.ledger.message import decode
from worker.settings import settings
from worker.store import keys

T = TypeVar("T")

TASKS = "tests.chaos.tasks"

#: Whether the tests run at the size of the promises, as `make chaos` has them; small otherwise.
FULL = bool(os.environ.get("CHAOS_FULL"))
#: What repeats a run: `make chaos SEED=n`.
SEED = os.environ.get("CHAOS_SEED") or str(random.randrange(1_000_000))

#: At small size signs of life and leases are short as well. A busy machine must still keep to them.
SHORT = {
    "HOLDFAST_NODE_BEAT_S": "0.5", "HOLDFAST_NODE_DEAD_S": "2.5", "HOLDFAST_LEASE_S": "1.0", "HOLDFAST_AUDIT_AFTER_S": "1.0",
    "HOLDFAST_RELAY_INTERVAL_S": "0.05",
}  # fmt: skip
SETTINGS = {} if FULL else SHORT

_EFFECTS = """
CREATE TABLE chaos_effects (job_id text NOT NULL, note text NOT NULL, pid int NOT NULL, at timestamptz DEFAULT clock_timestamp())
"""
_DONE = "SELECT id, array_agg(state) FROM job_history WHERE id = ANY(%s) GROUP BY id"


def sized(small: T, full: T) -> T:
    """Return what fits the size of this run."""
    return full if FULL else small


def worker(pool: str = "prefork", concurrency: int = 2, *, include: str = TASKS, **env: str) -> Worker:
    """Return a worker for the chaos tasks, without what Celery's workers have to say to one another as they start."""
    return Worker("--without-gossip", "--without-mingle", pool=pool, concurrency=concurrency, include=include, env=env)


def start_together(*programs: Program) -> None:
    """Start the programs that do not run side by side, and wait until each is ready."""
    starting = [(program, _log_size(program)) for program in programs if not program.running]
    for program, _ in starting:
        program.start(wait=False)
    for program, at in starting:
        program.wait_for_log(program.ready, READY_S, start=at)


def _log_size(program: Program) -> int:
    return program.log_path.stat().st_size if program.log_path.exists() else 0


def die_at(fault: str, work: Callable[[], object]) -> int:
    """Do the work in a forked copy of this process that is armed with a fault; return its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            faults.arm(fault)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- looking


def rows(sql: str, *values: Any) -> list[Any]:
    """Ask Postgres, on a connection that no test breaks."""
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
        return conn.execute(sql, values or None).fetchall()  # type: ignore[arg-type]


def one(sql: str, *values: Any) -> Any:
    """Ask Postgres for one value."""
    return rows(sql, *values)[0][0]


def make_effects_table() -> None:
    """Make the table of the tasks' effects."""
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
        conn.execute(_EFFECTS)


def now() -> Any:
    """Return the moment by the clock of Postgres."""
    return one("SELECT clock_timestamp()")


def state(job_id: str) -> str | None:
    """Return the state of a job, living or past."""
    found = rows("SELECT state FROM jobs WHERE id = %s UNION ALL SELECT state FROM job_history WHERE id = %s", job_id, job_id)
    return found[0][0] if found else None


def running(ids: Iterable[str]) -> list[str]:
    """Return which of these jobs run."""
    return [row[0] for row in rows("SELECT id FROM jobs WHERE state = 'running' AND id = ANY(%s)", list(ids))]


def holding() -> int:
    """Return how many attempts wait with their effect written and not committed."""
    return int(one(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
        " AND query LIKE 'INSERT INTO chaos_effects%'"
    ))  # fmt: skip


def attempts(ids: Iterable[str]) -> dict[str, int]:
    """Return how often each of these ended jobs was begun."""
    return dict(rows("SELECT id, attempt FROM job_history WHERE id = ANY(%s)", list(ids)))


def seconds_until_start(ids: Iterable[str], since: Any) -> float:
    """Return the seconds from a moment to the first claim after it among these ended jobs."""
    return float(one(
        "SELECT extract(epoch FROM min(claimed_at) - %s) FROM job_history WHERE id = ANY(%s) AND claimed_at > %s",
        since, list(ids), since,
    ))  # fmt: skip


def peek(broker: Redis, *, wipe: bool = False) -> list[str]:
    """Return the ids of the jobs that lie in the default queue; `wipe` flushes the server at that very moment."""
    lists = keys.queue_lists("default")
    with broker.pipeline(transaction=True) as pipe:
        for key in lists:
            pipe.lrange(key, 0, -1)
        if wipe:
            pipe.flushall()
        found = pipe.execute()[: len(lists)]
    return [decode(payload)["headers"]["id"] for payloads in found for payload in payloads]


# ---- what must hold


def wait_until_ended(ids: Iterable[str], timeout: float = 30.0) -> None:
    """Wait until none of these jobs lives."""
    wanted = list(ids)

    def left() -> int:
        return int(one("SELECT count(*) FROM jobs WHERE id = ANY(%s)", wanted))

    eventually(lambda: left() == 0, timeout, what=f"the end of {len(wanted)} jobs")


def assert_all_done_once(ids: Iterable[str], *, effects: int = 1) -> None:
    """Assert that each job ended once, as succeeded, with so many effects, and that nothing of it is left."""
    wanted = list(ids)
    ended = dict(rows(_DONE, wanted))
    found = Counter(row[0] for row in rows("SELECT job_id FROM chaos_effects WHERE job_id = ANY(%s)", wanted))
    trouble = {
        "still alive": [row[0] for row in rows("SELECT id FROM jobs WHERE id = ANY(%s)", wanted)],
        "lost": [i for i in wanted if i not in ended],
        "ended twice": [i for i in wanted if len(ended.get(i, [])) > 1],
        "not succeeded": [(i, ended[i]) for i in wanted if i in ended and ended[i] != ["succeeded"]],
        "without effect": [i for i in wanted if found[i] < effects],
        "with duplicate effects": [(i, found[i]) for i in wanted if found[i] > effects],
    }
    told = {what: (len(which), which[:5]) for what, which in trouble.items() if which}
    assert not told, f"of {len(wanted)} jobs: {told}"


def assert_ledger_empty() -> None:
    """Assert that no job lives any more."""
    living = rows("SELECT id, task, state, attempt, error FROM jobs")
    assert not living, f"{len(living)} jobs still live: {living[:5]}"


def notes() -> Counter[str]:
    """Return how often each effect was written."""
    return Counter(row[0] for row in rows("SELECT note FROM chaos_effects"))


def dead_s() -> float:
    """Return after how many seconds of silence a worker is taken for dead in this run."""
    return settings().node_dead_s
