"""Limits, budgets and leaderboards in the console."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from playwright.sync_api import Page, expect

from tests.console.refusing import come_back
from tests.console.visitors import Site
from worker.db import statement
from worker.ledger import balances, boards, limits, usage
from worker.ledger.usage import Actual
from worker.limits import Spend
from worker.limits.policy import parse_policy
from worker.store import coordination

LIMIT = {"is_new": "yes", "kind": "limit", "name": "api", "scope": "{task}", "rate": "10/minute", "on_outage": "open",
         "enabled": "yes"}  # fmt: skip
ACME = "org:acme/user:7"


def put(text: str) -> None:
    with statement() as conn:
        limits.put(conn, parse_policy(text))


def spend() -> None:
    """Spend of a budget, and reserve of it."""
    put("budget org:* 3 requests/day, 5000 micros/day")
    usage.settle(usage.reserve(ACME, Spend(1, 1000, 900), id="one").id, Actual(300, 100, 700))
    usage.reserve(ACME, Spend(1, 1000, 800), id="two")


def test_limit_is_set_used_reset_and_removed_in_a_browser(
    site: Site, tab: Callable[..., Page], shoot: Callable[[Page, str], None], db: psycopg.Connection[Any]
) -> None:
    spend()
    put("render {task} 2 concurrent lease 1h")
    page = tab("admin")
    page.goto("/console/limits")
    page.get_by_role("link", name="Set a policy").click()
    page.get_by_label("Name").fill("api")
    page.get_by_label("For", exact=True).fill("{kwargs[host]}")
    page.get_by_label("At most", exact=True).fill("ten a minute")
    page.get_by_role("button", name="Set").click()
    expect(page.locator("#e-rate")).to_contain_text("'ten a minute' cannot be understood")
    expect(page.get_by_label("For", exact=True)).to_have_value("{kwargs[host]}")
    shoot(page, "limit-form")
    page.get_by_label("At most", exact=True).fill("10/minute")
    page.get_by_role("button", name="Set").click()
    expect(page.get_by_role("status")).to_have_text("api is set: 10/minute sliding for {kwargs[host]}.")
    row = page.get_by_role("row", name="org:acme day requests")
    expect(row.get_by_role("cell")).to_have_text(["day", "requests", "1", "1", "1", "3", ""])
    expect(page.get_by_role("row", name="org:acme day millionths")).to_contain_text("700")
    shoot(page, "limits")
    for name, key, holder in (("api", "example.com", ""), ("api", "example.com", ""), ("render", "films", "job-1")):
        charge = limits.charge_on(name, key)
        assert charge is not None
        assert charge.limit.try_acquire(key, holder=holder)  # type: ignore[attr-defined]
    page.get_by_role("link", name="render", exact=True).click()
    expect(page.get_by_role("row", name="films")).to_contain_text("job-1")
    shoot(page, "limit")
    page.goto("/console/limits/one?name=api")
    expect(page.get_by_role("row", name="example.com").get_by_role("cell").first).to_have_text("8")
    page.get_by_role("button", name="Reset example.com").click()
    page.get_by_role("button", name="Reset").click()
    expect(page.get_by_role("status")).to_have_text("api begins anew for example.com.")
    expect(page.get_by_text("Nothing is charged to it")).to_be_visible()
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("status")).to_have_text("api is removed.")
    rows = db.execute("SELECT action FROM audit_log WHERE target = 'api' ORDER BY id").fetchall()
    assert rows == [("limit.set",), ("limit.reset",), ("limit.remove",)]


def test_budget_is_told_the_same_by_redis_and_by_the_record(site: Site) -> None:
    spend()
    with statement() as conn:
        known = balances.subjects(conn)
        by_redis = balances.balances(conn, known)
        coordination().ask([("FLUSHDB",)])
        by_record = balances.balances(conn, known)
    assert known == [ACME]
    assert by_redis == by_record
    assert [(one.amount, one.most, one.spent, one.open, one.left) for one in by_redis] == [
        ("requests", 3, 1, 1, 1), ("micros", 5000, 700, 800, 3500),
    ]  # fmt: skip


def test_limit_form_comes_back_with_the_error_at_its_field(site: Site, db: psycopg.Connection[Any]) -> None:
    ann = site.visitor("admin")
    budget = {**LIMIT, "kind": "budget", "scope": "org:*", "rate": "5 requests/day"}
    for good, field, value, said in [
        (LIMIT, "kind", "wish", "is none of limit, budget"), (LIMIT, "name", "two words", "is not 1 to 64 letters"),
        (LIMIT, "scope", "{sky}", "names 'sky'"), (LIMIT, "rate", "0/minute", "a limit is at least 1"),
        (LIMIT, "on_outage", "perhaps", "is none of closed, local, open"),
        (budget, "scope", "acme", "is not a pattern like org:*"),
        (budget, "rate", "10/minute", "write whole numbers like"), (budget, "name", "x" * 201, "a line of 1 to 200 characters"),
    ]:  # fmt: skip
        come_back(ann, "/console/limits/set", good, field, value, said)
    assert db.execute("SELECT count(*) FROM limit_policies").fetchone() == (0,)


def test_boards_show_the_hour_day_and_week_in_a_browser(
    site: Site, tab: Callable[..., Page], shoot: Callable[[Page, str], None], db: psycopg.Connection[Any]
) -> None:
    for name, member, value in (("callers", "acme", 120), ("callers", "bolt", 90), ("slow", "reports.build", 83_500),
                                ("failing", "mail.send", 7), ("spenders", ACME, 2_500_000)):  # fmt: skip
        boards.board(name, "day").add(member, value)
    boards.board("callers", "week").add("cargo", 5)
    page = tab("operator")
    page.goto("/console/leaderboards")
    expect(page.get_by_role("row", name="acme 120")).to_be_visible()
    expect(page.get_by_role("row", name="reports.build")).to_contain_text("1 min 23 s")
    shoot(page, "leaderboards")
    page.get_by_role("link", name="This week").click()
    expect(page.get_by_role("row", name="cargo")).to_be_visible()
    expect(page.get_by_text("acme")).to_have_count(0)
    page.get_by_role("button", name="Count anew").click()
    expect(page.get_by_role("status")).to_contain_text("A worker counts them anew")
    assert db.execute("SELECT task, args FROM jobs").fetchall() == [("boards.refresh", "[['week']]")]
