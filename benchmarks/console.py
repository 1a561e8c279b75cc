"""Measure the console's list of jobs over two million of them, through HTTP: every filter, some together, and deep pages.

What ending a job costs with the indexes of the search, and without, is measured beside it, turn by turn.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import httpx
import psycopg
from psycopg import sql

from benchmarks.support import Report, Servers, console, create_database, options, percentile, servers
from tests.harness import Gateway
from worker.clock import uuid7
from worker.db import statement, upgrade
from worker.ledger import claim, dispatch, history, operators, settle
from worker.ledger.accept import accept_rows
from worker.ledger.message import NewJob, encode
from worker.states import JobState

#: Days over which the past is spread.
DAYS = 7
#: Of every so many jobs one is of a rare task, caller and queue.
_RARE = 20_000

#: Ids are of version 7, as those of jobs accepted here.
_ID = "lpad(to_hex((extract(epoch FROM {at}) * 1000)::bigint), 12, '0')"
_MAKE_ID = """substr(m, 1, 8) || '-' || substr(m, 9, 4) || '-7' || substr(r, 1, 3) || '-8' || substr(r, 4, 3) || '-'
       || substr(r, 7, 12)"""
_VALUES = """
       CASE WHEN n % {rare} = 0 THEN 'reports.yearly'
            ELSE (ARRAY['mail.send', 'images.scale', 'invoices.pay', 'sync.crm'])[1 + n % 4] END,
       CASE WHEN n % {rare} = 0 THEN 'slow' ELSE (ARRAY['default', 'default', 'mail'])[1 + n % 3] END,
       CASE WHEN n % {rare} = 1 THEN 'tiny' WHEN n % 3 = 0 THEN 'acme' END,
       {message}::json, '(' || n || ', ''EUR'')', '{{''order'': ' || n * 7 || ', ''note'': ''' || repeat('x', n % 120) || '''}}'
"""
_FILL_PAST = f"""
INSERT INTO {{table}} (id, state, attempt, worker_id, created_at, available_at, started_at, claimed_at, finished_at, result,
                     error, task, queue, caller, message, args, kwargs)
SELECT {_MAKE_ID},
       CASE WHEN n % 50 = 0 THEN 'failed' WHEN n % 1000 = 1 THEN 'cancelled' WHEN n % {{rare}} = 2 THEN 'expired'
            ELSE 'succeeded' END,
       1, gen_random_uuid(), at - interval '3 s', at - interval '3 s', at - interval '1 s', at - interval '1 s', at, to_json(n),
       CASE WHEN n % 50 = 0 THEN 'ValueError(''no such order'')' END, {_VALUES}
  FROM generate_series({{first}}, {{last}}) AS n,
       LATERAL (SELECT {{since}}::timestamptz + (n - {{first}}) * ({{span}}::interval / ({{last}} - {{first}} + 1))) AS d(at),
       LATERAL (SELECT {_ID.format(at="at - interval '3 s'")}, md5(n::text)) AS i(m, r)
"""
_FILL_LIVING = f"""
INSERT INTO jobs (id, state, created_at, available_at, task, queue, caller, message, args, kwargs)
SELECT {_MAKE_ID}, CASE WHEN n % 10 = 0 THEN 'scheduled' ELSE 'queued' END, at, at, {_VALUES}
  FROM generate_series({{first}}, {{last}}) AS n, LATERAL (SELECT now() - ({{last}} - n) * interval '10 ms') AS d(at),
       LATERAL (SELECT {_ID.format(at="at")}, md5(n::text)) AS i(m, r)
"""
_INDEXES = (
    "job_history_finished_ix", "job_history_task_ix", "job_history_queue_ix", "job_history_caller_ix", "job_history_state_ix",
    "job_history_family_ix",
)  # fmt: skip


def fill(url: str, rows: int, living: int) -> None:
    """Fill a database with jobs of the past and living ones."""
    with psycopg.connect(url, autocommit=True) as conn:
        history.keep_up(conn)
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        a_day = rows // DAYS
        for number in range(DAYS):
            day = today - timedelta(days=DAYS - number)
            partition, first = history.name_of(day.date()), number * a_day + 1
            bounds = f"FROM ('{day}') TO ('{day + timedelta(days=1)}')"
            conn.execute(f"CREATE TABLE {partition} PARTITION OF job_history FOR VALUES {bounds}")
            _fill_past(conn, partition, first, a_day, day, "1 day")
        _run(conn, _FILL_LIVING, first=rows + 1, last=rows + living)
        conn.execute("VACUUM ANALYZE")
        conn.execute("CHECKPOINT")


def _fill_past(conn: psycopg.Connection[Any], partition: str, first: int, count: int, since: datetime, span: str) -> None:
    _run(conn, _FILL_PAST, table=sql.Identifier(partition), first=first, last=first + count - 1, since=str(since), span=span)


def _run(conn: psycopg.Connection[Any], text: str, **values: Any) -> None:
    message = encode(_job().message).decode()
    conn.execute(sql.SQL(text).format(rare=_RARE, message=message, **values))


def _job() -> NewJob:
    job_id = uuid7()
    headers = {
        "lang": "py", "task": "mail.send", "id": job_id, "root_id": job_id, "parent_id": None, "group": None, "retries": 0,
        "timelimit": [None, None], "argsrepr": "(1, 'EUR')", "kwargsrepr": "{}", "origin": "gen1@host", "stamps": {},
    }  # fmt: skip
    message = {
        "headers": headers, "properties": {"correlation_id": job_id, "reply_to": ""},
        "body": '[[1, "EUR"], {"order": 7}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]',
        "content-type": "application/json", "content-encoding": "utf-8",
    }  # fmt: skip
    return NewJob(
        id=job_id, task="mail.send", queue="default", message=message, args="(1, 'EUR')", root_id=job_id, fresh=True,
        caller="acme",
    )  # fmt: skip


# ---- pages


def searches(rows: int) -> dict[str, dict[str, str]]:
    """Return the searches that are measured, by what is said of them."""
    with statement() as conn:
        some, living = (
            str(conn.execute(f"SELECT id FROM {table} ORDER BY id OFFSET 777 LIMIT 1").fetchone()[0])  # type: ignore[index]
            for table in ("job_history", "jobs")
        )
    since = (datetime.now(UTC) - timedelta(days=4)).strftime("%Y-%m-%dT%H:%M")
    until = (datetime.now(UTC) - timedelta(days=3)).strftime("%Y-%m-%dT%H:%M")
    return {
        "no filter": {}, "all that ended": {"state": "ended"}, "failed or discarded": {"state": "broken"},
        **{f"state {state}": {"state": state} for state in JobState},
        "task, one in four": {"task": "mail.send"}, "task, rare": {"task": "reports.yearly"}, "task, none": {"task": "no.such"},
        "task, ended": {"task": "mail.send", "state": "ended"},
        "task, rare, ended": {"task": "reports.yearly", "state": "ended"},
        "queue, most": {"queue": "default"}, "queue, rare, ended": {"queue": "slow", "state": "ended"},
        "caller, a third": {"caller": "acme"}, "caller, rare, ended": {"caller": "tiny", "state": "ended"},
        "id, past": {"id": some}, "id, living": {"id": living}, "id, its beginning": {"id": some[:13]},
        "arguments, common": {"text": "EUR"}, "arguments, one job": {"text": f"({rows // 2},"},
        "arguments, none": {"text": "nowhere"},
        "time": {"since": since, "until": until}, "time, ended": {"since": since, "until": until, "state": "ended"},
        "task, state, time": {"task": "mail.send", "state": "failed", "since": since},
        "task, caller": {"task": "mail.send", "caller": "acme", "state": "ended"},
        "task, caller, never": {"task": "reports.yearly", "caller": "tiny", "state": "ended"},
        "task, arguments": {"task": "mail.send", "text": f"({rows // 2},", "state": "ended"},
        "all at once": {
            "task": "mail.send", "caller": "acme", "queue": "default", "state": "failed", "text": "EUR", "since": since,
        },
    }  # fmt: skip


_NEXT = re.compile(r'rel="next" href="([^"]+)"|<a href="([^"]+)">Look further')
_ROWS = re.compile(r'name="ids" value=')


def _ask(http: httpx.Client, path: str) -> tuple[float, str]:
    began = time.perf_counter()
    answer = http.get(path)
    seconds = time.perf_counter() - began
    assert answer.status_code == 200, answer.text[-2000:]
    return seconds * 1000, answer.text


def measure(http: httpx.Client, path: str, turns: int) -> tuple[list[float], str]:
    """Return the milliseconds of each of so many requests, and the page."""
    _ask(http, path)
    found = [_ask(http, path) for _ in range(turns)]
    return [ms for ms, _ in found], found[-1][1]


def deep(http: httpx.Client, path: str, pages: int) -> list[float]:
    """Return the milliseconds of page after page."""
    found = []
    for _ in range(pages):
        ms, text = _ask(http, path)
        found.append(ms)
        onward = _NEXT.search(text)
        if onward is None:
            break
        path = (onward[1] or onward[2]).replace("&amp;", "&")
    return found


def _visit(gateway: Gateway) -> httpx.Client:
    """Return a client that is logged in."""
    with statement() as conn:
        operators.add(conn, "bench", "operator", "correct horse battery")
    http = httpx.Client(base_url=gateway.url, timeout=60, trust_env=False)
    token = re.search(r'name="csrf_token" value="([^"]+)"', http.get("/console/login").text)
    assert token is not None
    answer = http.post("/console/login", data={"csrf_token": token[1], "name": "bench", "password": "correct horse battery"})
    assert answer.status_code == 303, answer.text
    return http


# ---- what ending a job costs


class Ledger:
    """One database in which jobs end, with the indexes of the search or without."""

    def __init__(self, url: str, rows: int, *, indexed: bool) -> None:
        upgrade(url)
        self.conn = psycopg.connect(url, autocommit=True)
        history.keep_up(self.conn)
        for name in () if indexed else _INDEXES:
            self.conn.execute(f"DROP INDEX {name}")
        # Rows to be beside: an index that is empty costs nothing.
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        _fill_past(self.conn, history.name_of(today.date()), 1, rows, today, "1 second")
        self.conn.execute("VACUUM ANALYZE")

    def live_through(self, note: Callable[[str, float], None]) -> None:
        """Take a job from its acceptance to its end, noting the seconds of claiming and settling it."""
        job = _job()
        accept_rows(self.conn, [job], [None])
        (sent,) = dispatch.take_due(self.conn, "default", 1, "epoch")
        token = uuid4()
        began = time.perf_counter()
        assert claim.claim(self.conn, sent.id, sent.revision, token=token, worker_id=token, delivery_tag=str(token))
        note("claim", time.perf_counter() - began)
        began = time.perf_counter()
        assert settle.finish(self.conn, sent.id, settle.Guard.token(token), settle.Outcome(JobState.SUCCEEDED, result="1"))
        note("settle", time.perf_counter() - began)


def cost_of_ends(here: Servers, rows: int, turns: int) -> dict[tuple[str, str], list[float]]:
    """Return the milliseconds of claims and settles, with the indexes and without, turn by turn."""
    url = here.stack.postgres.url
    ledgers = {name: Ledger(create_database(url, name), rows, indexed=name == "indexed") for name in ("indexed", "bare")}
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(turns):
        for name, ledger in ledgers.items():
            ledger.live_through(lambda step, seconds, name=name: times.setdefault((name, step), []).append(seconds * 1000))
    return times


def main() -> None:
    """Measure and print."""
    given = options(__doc__).parse_args()
    rows, living, turns, pages = (100_000, 5_000, 10, 20) if given.quick else (2_000_000, 50_000, 20, 50)
    report = Report(as_json=given.json)
    with servers() as here:
        upgrade()
        console.print(f"[dim]filling {rows:,} jobs of the past and {living:,} that live[/]")
        fill(here.stack.postgres.url, rows, living)
        with Gateway(env={"HOLDFAST_LOG_LEVEL": "WARNING"}) as gateway:
            _pages(report, _visit(gateway), rows, turns, pages)
        _ends(report, cost_of_ends(here, rows // DAYS, 200 if given.quick else 600))
    report.print()


def _pages(report: Report, http: httpx.Client, rows: int, turns: int, pages: int) -> None:
    lines, worst = [], 0.0
    for what, fields in searches(rows).items():
        path = f"/console/jobs?{urlencode(fields)}"
        ms, text = measure(http, path, turns)
        worst = max(worst, percentile(ms, 95))
        cut = "cut" if "Time was up" in text else "whole"
        lines.append([what, f"{statistics.median(ms):.0f}", f"{percentile(ms, 95):.0f}", len(_ROWS.findall(text)), cut])
        report.figure(f"{what}: p50 ms", statistics.median(ms))
        report.figure(f"{what}: p95 ms", percentile(ms, 95))
        report.figure(f"{what}: page", cut)
    for what, path in (("deep pages, no filter", "/console/jobs"), ("deep pages, ended", "/console/jobs?state=ended"),
                       ("deep pages, a task", "/console/jobs?task=mail.send&state=ended"),
                       ("deep pages, one argument", "/console/jobs?text=nowhere&state=ended")):  # fmt: skip
        ms = deep(http, path, pages)
        worst = max(worst, percentile(ms, 95))
        lines.append([what, f"{statistics.median(ms):.0f}", f"{percentile(ms, 95):.0f}", f"{len(ms)} pages", ""])
        report.figure(f"{what}: p95 ms", percentile(ms, 95))
    report.table(f"pages of {rows:,} jobs, in ms", ["search", "p50", "p95", "jobs", "answer"], lines)
    report.target("slowest p95 of a page, ms", worst, most=200)


def _ends(report: Report, times: dict[tuple[str, str], list[float]]) -> None:
    lines = []
    for step in ("claim", "settle"):
        bare, indexed = (statistics.median(times[name, step]) for name in ("bare", "indexed"))
        report.figure(f"{step} p50 ms, bare", bare)
        report.figure(f"{step} p50 ms, indexed", indexed)
        tails = [f"{percentile(times[name, step], 99):.3f}" for name in ("bare", "indexed")]
        lines.append([step, f"{bare:.3f}", f"{indexed:.3f}", *tails, f"{indexed / bare:.3f}"])
    report.table("what ending a job costs, in ms", ["", "p50 without", "p50 with", "p99 without", "p99 with", "p50 ratio"], lines)


if __name__ == "__main__":
    main()
