"""What the SQL door carries and how soon its jobs start.

    python -m benchmarks.sql_door [--quick] [--json]

Throughput is that of `holdfast.enqueue_many`, one statement and one commit that syncs to disk; of
`select count(holdfast.enqueue(…)) from generate_series(1, n)`; and of transactions of one job each from several connections.
Latency is from the commit of one job until its body runs, in a system that does nothing else.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable

import psycopg

from benchmarks.support import Report, Servers, eventually, options, percentile, servers
from tests.harness import Relay, Worker

_SET = """
SELECT count(*) FROM holdfast.enqueue_many(%s, (SELECT array_agg(jsonb_build_array(n, 2)) FROM generate_series(1, %s) AS n))
"""
_MANY = "SELECT count(holdfast.enqueue(%s, %s::jsonb)) FROM generate_series(1, %s)"
_MANY_KEYED = "SELECT count(holdfast.enqueue(%s, %s::jsonb, key => n::text)) FROM generate_series(1, %s) AS n"
_ONE = "SELECT holdfast.enqueue(%s, %s::jsonb)"
_CLEAR = "TRUNCATE jobs, job_keys"
_STARTED = "SELECT extract(epoch FROM started_at - created_at)::float8 FROM job_history WHERE id = %s"
_ADD = ("tests.sample_tasks.add", "[1, 2]")
#: Connections that commit one job at a time.
_CONNECTIONS = 8


def main() -> int:
    """Measure and print."""
    given = options(__doc__).parse_args()
    report = Report(as_json=given.json)
    with servers() as here:
        prepare()
        _throughput(here, report, jobs=2_000 if given.quick else 20_000, rounds=2 if given.quick else 5)
        _latency(here, report, jobs=40 if given.quick else 300)
    report.print()
    return 0


def prepare() -> None:
    from tests import sample_tasks
    from worker.app import app
    from worker.db import statement, upgrade
    from worker.engine.registry import register_tasks
    from worker.ledger import history

    upgrade()
    app.finalize()
    assert sample_tasks.add.name in app.tasks
    register_tasks(app)
    with statement() as conn:
        history.keep_up(conn)


def _throughput(here: Servers, report: Report, jobs: int, rounds: int) -> None:
    with psycopg.connect(here.stack.postgres.url, autocommit=True) as conn:
        together = _rate(conn, rounds, jobs, lambda: conn.execute(_SET, (_ADD[0], jobs)))
        plain = _rate(conn, rounds, jobs, lambda: conn.execute(_MANY, (*_ADD, jobs)))
        keyed = _rate(conn, rounds, jobs, lambda: conn.execute(_MANY_KEYED, (*_ADD, jobs)))
        single = _rate(conn, rounds, jobs // 4, lambda: _singly(here, jobs // 4))
    single_name = f"commits of one, {_CONNECTIONS} connections"
    rows = [
        ("enqueue_many, one statement", together), ("enqueue, one statement", plain),
        ("enqueue, one statement, each with a key", keyed), (single_name, single),
    ]  # fmt: skip
    report.table("Jobs accepted by SQL, durable", ["", "jobs/s"], [(what, round(rate)) for what, rate in rows])
    names = ("sql_many_jobs_per_s", "sql_jobs_per_s", "sql_keyed_jobs_per_s", "sql_single_jobs_per_s")
    for name, (_, rate) in zip(names, rows, strict=True):
        report.figure(name, rate, 0)
    report.target("SQL intake by enqueue_many, jobs/s", together, least=10_000)
    report.target("SQL intake by enqueue, jobs/s", plain, least=10_000)


def _rate(conn: psycopg.Connection, rounds: int, jobs: int, work: Callable[[], object]) -> float:
    rates = []
    for _ in range(rounds):
        conn.execute(_CLEAR)
        started = time.perf_counter()
        work()
        rates.append(jobs / (time.perf_counter() - started))
    conn.execute(_CLEAR)
    return statistics.median(rates)


def _singly(here: Servers, jobs: int) -> None:
    def work() -> None:
        with psycopg.connect(here.stack.postgres.url, autocommit=True) as conn:
            for _ in range(jobs // _CONNECTIONS):
                conn.execute(_ONE, _ADD)

    threads = [threading.Thread(target=work) for _ in range(_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _latency(here: Servers, report: Report, jobs: int) -> None:
    env = {**here.env(), "HOLDFAST_INCLUDE": "tests.sample_tasks"}
    with Relay(env=env), Worker(pool="threads", concurrency=2, env=env):
        with psycopg.connect(here.stack.postgres.url, autocommit=True) as conn:
            waits = [_wait_ms(conn, turn) for turn in range(jobs)]
    middle, last = percentile(waits, 50), percentile(waits, 99)
    report.table("From commit to start, idle, in ms", ["p50", "p99", "jobs"], [(f"{middle:.0f}", f"{last:.0f}", jobs)])
    report.figure("sql_start_p50_ms", middle, 1)
    report.figure("sql_start_p99_ms", last, 1)
    report.target("commit to start by SQL, p99 in ms", last, most=150)


def _wait_ms(conn: psycopg.Connection, turn: int) -> float:
    (job_id,) = conn.execute(_ONE, _ADD).fetchone() or ("",)
    (wait_s,) = eventually(lambda: conn.execute(_STARTED, (job_id,)).fetchone(), 30)
    time.sleep((turn % 10) / 100)  # so that the relay's rounds are met at all their moments
    return float(wait_s) * 1000


if __name__ == "__main__":
    sys.exit(main())
