"""Statistics: right figures, one count for all who ask, old ones while Postgres is away, and plots of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.harness import eventually
from worker.cli.program import invoke
from worker.cli.stats import bar, span, sparkline
from worker.embedded import Stack
from worker.ledger import manage, statistics
from worker.store import keys

Conn = psycopg.Connection[Any]

_ENDED = """
INSERT INTO job_history (id, task, queue, state, message, claimed_at, finished_at)
SELECT gen_random_uuid()::text, %(task)s, 'default', %(state)s, '{}', at - %(ran_s)s * interval '1 second', at
  FROM (SELECT date_trunc('hour', now()) - %(hours_ago)s * interval '1 hour' + interval '1 microsecond' AS at) AS moment,
       generate_series(1, %(times)s)
"""
_LIVING = """
INSERT INTO jobs (id, task, queue, state, message, available_at)
SELECT gen_random_uuid()::text, 't', %s, %s, '{}', now() + %s * interval '1 second' FROM generate_series(1, %s)
"""


@pytest.fixture(autouse=True)
def _patient(conf: Callable[..., None]) -> None:
    """A machine that is too busy for the deadline of the cache is no outage here."""
    conf(cache_timeout_ms=2000)


def ended(
    db: Conn, task: str, state: str = "succeeded", *, hours_ago: int = 0, ran_s: float | None = 1.0, times: int = 1
) -> None:
    db.execute(_ENDED, {"task": task, "state": state, "hours_ago": hours_ago, "ran_s": ran_s, "times": times})


def test_activity_is_counted_by_task_and_hour(db: Conn) -> None:
    ended(db, "a", hours_ago=0, times=3)
    ended(db, "a", hours_ago=1, times=2)
    ended(db, "a", "failed", hours_ago=1)
    ended(db, "a", "discarded", hours_ago=1)
    ended(db, "b", "cancelled", hours_ago=1, ran_s=None)
    ended(db, "b", hours_ago=2, times=9)
    found = statistics.activity(2)
    assert [(row.task, row.ended, row.succeeded, row.failed) for row in found.by_hour] == [
        ("a", 4, 2, 2), ("a", 3, 3, 0), ("b", 1, 0, 0),
    ]  # fmt: skip
    assert (found.by_hour[1].hour - found.by_hour[0].hour).total_seconds() == 3600
    assert [(row.task, row.ended, row.succeeded, row.failed) for row in found.by_task] == [("a", 7, 5, 2), ("b", 1, 0, 0)]
    assert statistics.activity(3).by_task[1].ended == 10


def test_run_times_are_percentiles_of_what_ran(db: Conn) -> None:
    for seconds in range(1, 101):
        ended(db, "a", ran_s=seconds)
    ended(db, "a", "cancelled", ran_s=10_000)
    ended(db, "b", "expired", ran_s=None)
    a, b = statistics.activity().by_task
    assert (a.p50_s, a.p95_s) == (pytest.approx(50.5), pytest.approx(95.05))
    assert (b.p50_s, b.p95_s) == (None, None)


def test_backlog_is_told_by_queue_with_the_longest_wait(db: Conn) -> None:
    waiting = (("mail", "queued", -60, 2), ("mail", "scheduled", -5, 1), ("mail", "scheduled", 60, 4), ("x", "queued", 0, 1))
    for queue, state, in_s, times in waiting:
        db.execute(_LIVING, (queue, state, in_s, times))
    db.execute("UPDATE jobs SET state = 'running', claim_token = gen_random_uuid(), claimed_at = now() WHERE queue = 'x'")
    manage.set_paused(db, "mail", True)
    mail, x = statistics.backlog().queues
    assert (mail.queue, mail.paused, mail.waiting, mail.running, mail.scheduled) == ("mail", True, 3, 0, 4)
    assert mail.oldest_s == pytest.approx(60, abs=5)
    assert (x.paused, x.waiting, x.running, x.oldest_s) == (False, 0, 1, None)


@pytest.mark.parametrize("hours", [0, -1, 169])
def test_hours_out_of_range_are_refused(env: dict[str, str], hours: int) -> None:
    with pytest.raises(ValueError, match=f"hours {hours}: must be from 1 to 168"):
        statistics.activity(hours)


def test_many_who_ask_at_once_cost_one_count(db: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    ended(db, "a")
    counts: list[int] = []
    count = statistics._count_activity
    monkeypatch.setattr(statistics, "_count_activity", lambda conn, hours: counts.append(hours) or count(conn, hours))
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda _: statistics.activity(), range(200)))
    assert {report.by_task[0].ended for report in found} == {1}
    assert counts == [24]


def test_known_figures_are_told_while_postgres_is_away(db: Conn, stack: Stack, cache: Any) -> None:
    ended(db, "a")
    at = statistics.activity().at
    cache.pexpire(keys.cache_entry(statistics.activity.key()), 3_000_000)  # as if filled ten minutes ago
    stack.postgres.kill()
    assert statistics.activity().at == at
    assert statistics.activity().by_task[0].ended == 1


def test_refresh_counts_anew(db: Conn) -> None:
    assert statistics.activity().by_task == []
    ended(db, "a")
    assert statistics.activity().by_task == []
    assert statistics.activity.refresh().advanced
    assert statistics.activity().by_task[0].ended == 1


def test_figures_past_their_time_are_given_at_once_and_counted_anew_behind(db: Conn, cache: Any) -> None:
    assert statistics.backlog().queues == []
    db.execute(_LIVING, ("mail", "queued", 0, 1))
    cache.pexpire(keys.cache_entry(statistics.backlog.key()), 590_000)  # as if filled ten seconds ago
    assert statistics.backlog().queues == []
    assert eventually(lambda: statistics.backlog().queues, 3)


# ---- shown


@pytest.fixture
def holdfast(env: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*args: str) -> str:
        capsys.readouterr()
        assert invoke(list(args)) == 0
        return capsys.readouterr().out

    return run


def test_stats_are_one_json_document(holdfast: Callable[..., str], db: Conn) -> None:
    ended(db, "a", times=2)
    ended(db, "a", "failed")
    db.execute(_LIVING, ("mail", "queued", -60, 1))
    document = json.loads(holdfast("stats", "--hours", "3", "--json"))
    assert document["activity"]["by_task"] == [{"task": "a", "ended": 3, "succeeded": 2, "failed": 1, "p50_s": 1.0, "p95_s": 1.0}]
    assert document["activity"]["by_hour"][0]["hour"].endswith("+00:00")
    assert document["backlog"]["queues"][0]["waiting"] == 1


def test_stats_are_drawn(holdfast: Callable[..., str], db: Conn) -> None:
    ended(db, "mails.send", times=1200, hours_ago=1, ran_s=0.0042)
    ended(db, "mails.send", "failed", times=300)
    db.execute(_LIVING, ("mail", "queued", -7500, 1))
    said = holdfast("stats", "--hours", "3").splitlines()
    assert said[1].endswith(" 0")
    assert said[2].count("█") == 50
    assert said[2].endswith(" 1,200")
    assert said[3].endswith(" 300 (300 failed)")
    (task,) = [line for line in said if line.startswith("mails.send")]
    assert task.split() == ["mails.send", "1,500", "300", "20.0", "4.2", "ms", "1.0", "s", "█▂"]
    assert any(line.split() == ["mail", "open", "1", "0", "0", "2", "h", "5", "min"] for line in said)


def test_stats_of_nothing_are_drawn_as_well(holdfast: Callable[..., str]) -> None:
    assert "Backlog" in holdfast("stats")


def test_fresh_stats_are_counted_anew(holdfast: Callable[..., str], db: Conn) -> None:
    assert json.loads(holdfast("stats", "--json"))["activity"]["by_task"] == []
    ended(db, "a")
    assert json.loads(holdfast("stats", "--json"))["activity"]["by_task"] == []
    assert json.loads(holdfast("stats", "--fresh", "--json"))["activity"]["by_task"][0]["ended"] == 1


def test_plots_are_true_to_scale() -> None:
    assert [len(bar(number, 100)) for number in (0, 1, 50, 100)] == [0, 1, 25, 50]
    assert bar(0, 0) == ""
    assert sparkline([0, 1, 4, 8]) == " ▁▄█"
    assert sparkline([]) == ""
    assert [span(s) for s in (None, 0.0042, 31.04, 3540, 7500)] == ["", "4.2 ms", "31.0 s", "59 min", "2 h 5 min"]


def test_hours_out_of_range_are_refused_each_time_and_cost_no_load(db: Conn) -> None:
    for hours in (0, 169, 0):
        for ask in (statistics.activity, statistics.activity.get, statistics.activity.refresh):
            with pytest.raises(ValueError, match=f"hours {hours}: must be from 1 to 168"):
                ask(hours)


def test_moments_without_an_end_are_no_figures(db: Conn, capsys: pytest.CaptureFixture[str]) -> None:
    for moment in ("-infinity", "infinity"):
        db.execute(_LIVING, ("mail", "queued", 0, 1))
        db.execute("UPDATE jobs SET available_at = %s WHERE isfinite(available_at)", (moment,))
    ended(db, "a")
    db.execute("UPDATE job_history SET claimed_at = '-infinity'")
    (mail,) = statistics.backlog().queues
    assert (mail.waiting, mail.oldest_s) == (2, None)
    assert statistics.activity().by_task[0].p50_s is None
    assert invoke(["stats"]) == 0
    assert "mail" in capsys.readouterr().out


def test_count_anew_that_fails_is_told_beside_the_old_figures(db: Conn, capsys: pytest.CaptureFixture[str]) -> None:
    ended(db, "a")
    assert invoke(["stats", "--fresh"]) == 0
    db.execute("ALTER TABLE job_history RENAME TO elsewhere")
    capsys.readouterr()
    assert invoke(["stats", "--fresh", "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["activity"]["by_task"][0]["ended"] == 1
    assert "statistics.activity:24 could not be counted anew" in said.err
