"""The list of jobs in the console: searching it, paging through it, and what it says of what it cannot do."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
from playwright.sync_api import Page, expect

from tests import sample_tasks as tasks
from tests.console.visitors import Site
from tests.integration.conftest import Bench
from worker import clock
from worker.engine.relay import Relay
from worker.ledger import search
from worker.ledger.search import Search

_PAST = """
INSERT INTO job_history (id, task, queue, state, message, args, caller, created_at, finished_at)
SELECT 'past-' || lpad(n::text, 8, '0'), CASE WHEN n %% 100 = 0 THEN 'rare' ELSE 'plain' END, 'default',
       CASE WHEN n %% 10 = 0 THEN 'failed' ELSE 'succeeded' END, '{}', '(' || n || ',)', CASE WHEN n %% 2 = 0 THEN 'acme' END,
       clock_timestamp() - n * interval '1 second', clock_timestamp() - n * interval '1 second'
  FROM generate_series(1, %s) AS n
"""
_LIVING = """
INSERT INTO jobs (id, task, queue, state, message, args)
SELECT 'live-' || lpad(n::text, 8, '0'), 'plain', 'default', 'queued', '{}', '(' || n || ',)' FROM generate_series(1, %s) AS n
"""
Conn = psycopg.Connection[Any]


def walked(db: Conn, which: Search, *, limit: int = 50, budget_s: float | None = None) -> list[str]:
    """Return the ids of all pages, one after the other."""
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = search.page(db, which, cursor=cursor, limit=limit, budget_s=budget_s)
        found += [job["id"] for job in page.jobs]
        cursor = page.next
    return found


def test_pages_show_each_job_once_living_first_and_the_latest_first(db: Conn) -> None:
    db.execute(_PAST, (1200,))
    db.execute(_LIVING, (700,))
    living = [f"live-{n:08}" for n in range(700, 0, -1)]
    past = [f"past-{n:08}" for n in range(1, 1201)]
    assert walked(db, Search()) == living + past
    assert walked(db, Search(states=("failed",))) == [name for name in past if int(name[5:]) % 10 == 0]
    assert walked(db, Search(states=("failed", "succeeded", "running"))) == past
    assert walked(db, Search(task="rare", caller="acme")) == [name for name in past if int(name[5:]) % 100 == 0]
    assert walked(db, Search(text="(77,)")) == ["live-00000077", "past-00000077"]
    assert walked(db, Search(id="past-00000077")) == ["past-00000077"]
    assert len(walked(db, Search(id="past-000001"))) == 100


def test_page_that_takes_too_long_is_cut_and_goes_on_where_it_stopped(db: Conn) -> None:
    db.execute(_PAST, (6000,))
    first = search.page(db, Search(text="(5990,)"), budget_s=0.0)
    assert (first.jobs, first.cut) == ([], True)
    assert first.next is not None
    assert first.reached is not None
    assert walked(db, Search(text="(5990,)"), budget_s=0.0) == ["past-00005990"]
    assert walked(db, Search(task="rare", text="0,)"), budget_s=0.0, limit=7) == [f"past-{n:08}" for n in range(100, 6001, 100)]


def test_time_is_of_the_end_and_for_the_living_of_the_acceptance(db: Conn) -> None:
    db.execute(_PAST, (300,))
    db.execute(_LIVING, (3,))
    now = clock.now()
    recent = walked(db, Search(since=now - timedelta(seconds=100)))
    assert {"live-00000001", "past-00000090"} <= set(recent)
    assert "past-00000110" not in recent
    assert len(walked(db, Search(since=now - timedelta(seconds=200), until=now - timedelta(seconds=100)))) in (99, 100, 101)


def test_search_goes_by_an_index_of_the_past(db: Conn) -> None:
    """A look at a page of a task must not read all of history: the plan names the index."""
    db.execute(_PAST, (5000,))
    db.execute("ANALYZE job_history")
    sql, _ = search._along(["task = 'rare'"], "true", 500)
    plan = "\n".join(row[0] for row in db.execute(f"EXPLAIN {sql}").fetchall())
    assert "task" in plan
    assert "Index" in plan
    assert "Seq Scan" not in plan


def test_filter_that_cannot_be_understood_is_told_with_the_form_it_has(site: Site) -> None:
    ann = site.visitor("viewer")
    for query, why in (
        ("state=purple", "state: &#39;purple&#39; is none"), ("since=yesterday", "since: &#39;yesterday&#39; is no moment"),
        ("until=2030-99-99", "until: &#39;2030-99-99&#39; is no moment"), ("id=ab", "is too short"),
        ("cursor=nonsense", "cursor: "), ("since=2030-01-02&until=2030-01-01", "until: it is not after since"),
        (f"text={'x' * 501}", "text: "), ("task=a%00b", "task: "), ("since=1e400d", "is no moment"),
        ("since=99999999999999d", "is no moment"), ("cursor=p~2030-01-01~%00", "cursor: "),
    ):  # fmt: skip
        answer = ann.get(f"/console/jobs?{query}")
        assert answer.status_code == 422, query
        assert why in answer.text, query


def test_jobs_are_found_filtered_paged_and_acted_on_in_a_browser(
    site: Site, tab: Callable[..., Page], db: Conn, relay: Relay, bench: Bench, shoot: Callable[[Page, str], None]
) -> None:
    db.execute(_PAST, (130,))
    failing = tasks.fail.delay("no such order")
    tasks.echo.delay("a very long argument " * 40, customer="ada@example.org")
    tasks.add.apply_async((1, 2), countdown=3600)
    relay.round()
    bench.work()
    page = tab("operator")
    page.goto("/console/jobs")
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    shoot(page, "jobs")
    page.get_by_role("link", name="failed or discarded").click()
    expect(page.get_by_role("row").filter(has_text=failing.id)).to_contain_text("no such order")
    page.get_by_label("Task", exact=True).fill("plain")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("row").filter(has_text="past-00000010")).to_be_visible()
    expect(page.get_by_text(failing.id)).to_have_count(0)
    page.get_by_role("link", name="Clear").click()
    page.get_by_role("link", name=re.compile("all that ended")).click()
    page.get_by_role("link", name="Older jobs").click()
    expect(page.locator("tbody tr")).to_have_count(50)
    page.get_by_role("link", name="Older jobs").click()
    expect(page.locator("tbody tr")).to_have_count(32)
    page.get_by_role("link", name="Newest").click()
    page.get_by_label("In the arguments").fill("(123,)")
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.get_by_role("link", name="plain", exact=True)).to_be_visible()
    page.goto("/console/jobs?task=nothing.such")
    expect(page.get_by_text("No job matches here.")).to_be_visible()
    shoot(page, "jobs-none")
