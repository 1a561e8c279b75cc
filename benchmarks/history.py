"""Measure what accepting, sending, claiming and settling cost with millions of retained jobs, against none; and how one table for
the living and the past would do.

The four databases take turns job by job, so that a slow moment of the machine meets each of them alike.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql

from benchmarks.support import Report, Servers, console, create_database, options, percentile, ratio, servers
from worker.clock import uuid7
from worker.db import upgrade
from worker.ledger import claim, dispatch, history, settle
from worker.ledger.accept import accept_rows
from worker.ledger.message import NewJob, encode
from worker.states import JobState

#: Days over which the retained jobs are spread.
DAYS = 7
#: Jobs that wait all the while: a window in Redis and as many behind it.
WAITING = 4000
#: Parts of a run, each with a p99 of its own; the ratio is the median of theirs.
BLOCKS = 10

#: Seconds of each step, in a list for each block, by ledger and step.
Times = dict[tuple[str, str], list[list[float]]]

OPERATIONS = ("accept", "accept, id given", "dispatch", "claim", "settle")

#: History as Holdfast would have written it itself.
_FILL = sql.SQL("""
INSERT INTO {table} (id, task, queue, state, message, args, attempt, root_id, worker_id, created_at, available_at, started_at,
                     claimed_at, finished_at, result)
SELECT gen_random_uuid()::text, 'tasks.send_receipt', 'default', 'succeeded', {message}::json, '(' || n || ', ''EUR'')', 1,
       gen_random_uuid()::text, gen_random_uuid(), at - interval '2 s', at - interval '2 s', at - interval '1 s',
       at - interval '1 s', at, to_json(n)
  FROM generate_series(1, {rows}) AS n, LATERAL (SELECT {day}::timestamptz + n * (interval '1 day' / ({rows} + 1))) AS d(at)
""")

#: The design not taken: the past stays in `jobs`, and partial indexes keep it out of the way.
_ONE_TABLE = """
ALTER TABLE jobs DROP CONSTRAINT jobs_state_check,
                 ADD finished_at timestamptz, ADD result json, ADD children json, ADD traceback text;
CREATE INDEX jobs_finished_ix ON jobs (finished_at) WHERE finished_at IS NOT NULL
"""
_SETTLE_THERE = """
UPDATE jobs SET state = 'succeeded', result = '1', finished_at = clock_timestamp()
 WHERE id = %(id)s AND state = 'running' AND claim_token = %(token)s RETURNING id
"""


class Ledger:
    """One database with jobs that wait and, maybe, a long past."""

    def __init__(self, here: Servers, name: str, rows: int, *, one_table: bool = False) -> None:
        console.print(f"[dim]filling {name}[/]")
        url = create_database(here.stack.postgres.url, name)
        upgrade(url)
        self.one_table = one_table
        self.conn = psycopg.connect(url, autocommit=True)
        history.keep_up(self.conn)
        if one_table:
            self.conn.execute(_ONE_TABLE)
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        self.oldest = today - timedelta(days=DAYS)
        for day in (today - timedelta(days=ago) for ago in range(DAYS, 0, -1)) if rows else ():
            self._fill(day, rows // DAYS)
        for _ in range(WAITING // 1000):
            accept_rows(self.conn, [_job() for _ in range(1000)], [None] * 1000)
        dispatch.take_due(self.conn, "default", WAITING // 2, "epoch")
        self.conn.execute("VACUUM ANALYZE")

    def _fill(self, day: datetime, rows: int) -> None:
        if not self.one_table:
            bounds = sql.SQL("FROM ({}) TO ({})").format(str(day), str(day + timedelta(days=1)))
            partition = sql.Identifier(history.name_of(day.date()))
            self.conn.execute(sql.SQL("CREATE TABLE {} PARTITION OF job_history FOR VALUES ").format(partition) + bounds)
        table = sql.Identifier("jobs" if self.one_table else "job_history")
        message = encode(_job().message).decode()
        self.conn.execute(_FILL.format(table=table, message=message, rows=rows, day=str(day)))

    def live_through(self, note: Callable[[str, float], None]) -> None:
        """Take two jobs from their acceptance to their end, noting the seconds of each step."""
        for step, fresh in (("accept", True), ("accept, id given", False)):
            job = _job(fresh=fresh)
            _timed(note, step, lambda job=job: accept_rows(self.conn, [job], [None]))
            (sent,) = _timed(note, "dispatch", lambda: dispatch.take_due(self.conn, "default", 1, "epoch"))
            token = uuid4()
            held = _timed(note, "claim", lambda sent=sent, token=token: claim.claim(
                self.conn, sent.id, sent.revision, token=token, worker_id=token, delivery_tag=str(token)))  # fmt: skip
            assert held, "a job that was just sent can be claimed"
            assert _timed(note, "settle", lambda sent=sent, token=token: self._settle(sent.id, token))

    def _settle(self, job_id: str, token: Any) -> bool:
        if self.one_table:
            return self.conn.execute(_SETTLE_THERE, {"id": job_id, "token": token}).fetchone() is not None
        return settle.finish(self.conn, job_id, settle.Guard.token(token), settle.Outcome(JobState.SUCCEEDED, result="1"))

    def upkeep(self) -> dict[str, float]:
        """Return the seconds that vacuuming the living and pruning a day take, and the megabytes of the indexes on the living."""
        day = (str(self.oldest), str(self.oldest + timedelta(days=1)))
        prune = f"DROP TABLE {history.name_of(self.oldest.date())}"
        if self.one_table:
            prune = "DELETE FROM jobs WHERE finished_at >= '{}' AND finished_at < '{}'".format(*day)
        size = self.conn.execute("SELECT pg_indexes_size('jobs') / 1e6::float8").fetchone()
        assert size is not None
        return {
            "vacuum s": _seconds(lambda: self.conn.execute("VACUUM jobs")),
            "prune a day s": _seconds(lambda: self.conn.execute(prune)),
            "vacuum after it s": _seconds(lambda: self.conn.execute("VACUUM jobs")),
            "indexes MB": size[0],
        }


def _job(*, fresh: bool = True) -> NewJob:
    job_id, args = uuid7(), "(1, 'EUR')"
    headers = {
        "lang": "py", "task": "tasks.send_receipt", "id": job_id, "shadow": None, "eta": None, "expires": None, "group": None,
        "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": job_id, "parent_id": None, "argsrepr": args,
        "kwargsrepr": "{}", "origin": "gen1@host", "ignore_result": False, "replaced_task_nesting": 0, "stamped_headers": None,
        "stamps": {},
    }  # fmt: skip
    message = {
        "headers": headers, "properties": {"correlation_id": job_id, "reply_to": ""},
        "body": '[[1, "EUR"], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]',
        "content-type": "application/json", "content-encoding": "utf-8",
    }  # fmt: skip
    return NewJob(
        id=job_id, task="tasks.send_receipt", queue="default", message=message, args=args, root_id=job_id, fresh=fresh
    )


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _timed(note: Callable[[str, float], None], step: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    done = work()
    note(step, time.perf_counter() - start)
    return done


def main() -> None:
    """Measure and print."""
    given = options(__doc__).parse_args()
    rows, turns = (200_000, 50) if given.quick else (2_000_000, 250)
    report = Report(as_json=given.json)
    with servers() as here:
        ledgers = {
            "two tables, empty": Ledger(here, "two_empty", 0),
            "two tables, full": Ledger(here, "two_full", rows),
            "one table, empty": Ledger(here, "one_empty", 0, one_table=True),
            "one table, full": Ledger(here, "one_full", rows, one_table=True),
        }
        here.execute("CHECKPOINT")
        times: Times = defaultdict(list)
        for block in range(BLOCKS):
            console.print(f"[dim]block {block + 1} of {BLOCKS}[/]")
            for name in ledgers:
                for step in OPERATIONS:
                    times[name, step].append([])
            for _ in range(turns):
                for name, ledger in ledgers.items():
                    ledger.live_through(lambda step, seconds, name=name: times[name, step][-1].append(seconds))
        upkeep = {name: ledger.upkeep() for name, ledger in ledgers.items() if name.endswith("full")}
    _tell(report, rows, times, upkeep)


def _tell(report: Report, rows: int, times: Times, upkeep: dict[str, dict[str, float]]) -> None:
    ratios = {}
    for design, title in (("two tables", "two tables"), ("one table", "one table for the living and the past (not taken)")):
        lines = []
        for step in OPERATIONS:
            empty, full = times[f"{design}, empty", step], times[f"{design}, full", step]
            ratios[design, step] = ratio([percentile(block, 99) for block in full], [percentile(block, 99) for block in empty])
            report.figure(f"{design}: {step} p99 ratio", ratios[design, step])
            cells = []
            for name, blocks in (("empty", empty), ("full", full)):
                every = [seconds * 1000 for block in blocks for seconds in block]
                for label, value in (("p50", statistics.median(every)), ("p99", percentile(every, 99))):
                    report.figure(f"{design}, {name}: {step} {label} ms", value)
                    cells.append(f"{value:.2f}")
            lines.append([step, *cells, f"{ratios[design, step]:.2f}"])
        columns = ["ms", "p50, none", "p99, none", "p50, past", "p99, past", "p99 ratio"]
        report.table(f"{title}: no past against {rows:,} jobs of the past", columns, lines)
    steps = list(next(iter(upkeep.values())))
    lines = [[step, *(f"{found[step]:.2f}" for found in upkeep.values())] for step in steps]
    report.table("upkeep with the past there", ["", *upkeep], lines)
    for name, found in upkeep.items():
        for step, value in found.items():
            report.figure(f"{name}: {step}", value)
    report.target("claim p99, past against none", ratios["two tables", "claim"], most=1.25)
    report.print()


if __name__ == "__main__":
    main()
