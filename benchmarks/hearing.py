"""Measure what events and callbacks cost the jobs that have neither.

    python -m benchmarks.hearing [--quick] [--json]

Jobs are claimed and settled with the triggers of both enabled and disabled, in turns, on one connection. The difference in the
processor time of Postgres is held against all that a job costs while a worker runs a backlog: the worker's own time, and that of
Postgres for it. The times are read from Linux's /proc.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg

from benchmarks.sql_door import prepare
from benchmarks.support import Report, Servers, console, eventually, options, servers
from tests.harness import Worker
from worker.states import JobState

#: Rounds of each kind, and the jobs of one.
ROUNDS, JOBS = 30, 300
#: Jobs of the backlog: no more than a window, so that it takes no relay.
BACKLOG = 1500
#: The most that hearing back may cost those who do not ask for it, in percent.
MOST_PERCENT = 2.0

#: What writes events of jobs that have a caller, and callbacks, by the table it is on.
_TRIGGERS = {"jobs": ("job_event_changed",), "job_history": ("job_event_ended", "job_history_callback")}
_BACKENDS = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND NOT pid = ANY(%s)"
_ENDED = "SELECT count(*) FROM job_history"


def main() -> int:
    """Measure and print."""
    given = options(__doc__).parse_args()
    report = Report(as_json=given.json)
    with servers() as here:
        prepare()
        with psycopg.connect(here.stack.postgres.url, autocommit=True) as conn:
            extra = _extra_us(conn, rounds=10 if given.quick else ROUNDS)
            whole = _whole_us(conn, here, jobs=BACKLOG // 3 if given.quick else BACKLOG)
    rows = [["all of it", round(whole)], ["triggers that have nothing to do", round(extra)]]
    report.table("processor time a job", ["", "µs"], rows)
    report.figure("job_us", whole, 1)
    report.figure("triggers_us", extra, 1)
    report.target("events and callbacks of others, of a job's time, %", extra / whole * 100, most=MOST_PERCENT)
    report.print()
    return 0


def _extra_us(conn: psycopg.Connection[Any], rounds: int) -> float:
    """Return the microseconds by which the triggers make the claim and the end of a job dearer."""
    _claim_and_settle(conn, JOBS)  # first plans
    took: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(rounds):
        console.print(f"[dim]round {turn + 1} of {rounds}[/]")
        for enabled in (turn % 2 == 0, turn % 2 == 1):
            for table, names in _TRIGGERS.items():
                for name in names:
                    conn.execute(f"ALTER TABLE {table} {'ENABLE' if enabled else 'DISABLE'} TRIGGER {name}")
            took[enabled].append(_claim_and_settle(conn, JOBS))
    return min(took[True]) - min(took[False])  # the rounds that nothing else of the machine made dearer


def _claim_and_settle(conn: psycopg.Connection[Any], jobs: int) -> float:
    """Return the microseconds that Postgres works for the claim and the end of a job."""
    from tests import sample_tasks
    from worker.app import enqueue_many
    from worker.ledger.claim import claim
    from worker.ledger.settle import Guard, Outcome, finish

    ids = enqueue_many(sample_tasks.noop, [()] * jobs)
    backend = [conn.info.backend_pid]
    before = _worked_us(backend)
    for job_id in ids:
        token = uuid4()
        assert claim(conn, job_id, 0, token=token, worker_id=uuid4(), delivery_tag="tag")
        with conn.transaction():
            finish(conn, job_id, Guard.token(token), Outcome(JobState.SUCCEEDED))
    return (_worked_us(backend) - before) / jobs


def _whole_us(conn: psycopg.Connection[Any], here: Servers, jobs: int) -> float:
    """Return the microseconds that a worker and Postgres work for a job of a backlog."""
    from tests import sample_tasks
    from worker.app import enqueue_many

    here.flush()
    conn.execute("TRUNCATE jobs, job_history")
    ours = [row[0] for row in conn.execute(_BACKENDS, ([],)).fetchall()]
    with Worker(pool="prefork", concurrency=2, include="tests.sample_tasks") as worker:
        enqueue_many(sample_tasks.noop, [()] * 100)
        eventually(lambda: _ended(conn) == 100, 60)
        theirs = [row[0] for row in conn.execute(_BACKENDS, (ours,)).fetchall()]
        pids = [*_tree(worker.pid), *theirs]
        before = _worked_us(pids)
        enqueue_many(sample_tasks.noop, [()] * jobs)
        eventually(lambda: _ended(conn) == 100 + jobs, 120, every=0.1)
        return (_worked_us(pids) - before) / jobs


def _ended(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute(_ENDED).fetchone()
    assert row is not None
    return int(row[0])


def _tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    children = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return [pid, *(found for child in children for found in _tree(child))]


def _worked_us(pids: Iterable[int]) -> float:
    """Return the microseconds for which processes have had a processor so far."""
    threads = [path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(path.read_text().split()[0]) for path in threads) / 1000


if __name__ == "__main__":
    sys.exit(main())
