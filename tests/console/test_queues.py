"""Queues in the console: looking at them, pausing one, and who may."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from playwright.sync_api import Page, expect

from tests import sample_tasks as tasks
from tests.console.visitors import Site


def test_queue_is_paused_and_resumed_and_both_stand_in_the_trail(site: Site, db: psycopg.Connection[Any]) -> None:
    ann = site.visitor("operator", "ann")
    asked = ann.send_form("/console/queues/pause", queue="default")
    assert asked.status_code == 200
    assert "Pause the queue default?" in asked.text
    assert db.execute("SELECT count(*) FROM queues WHERE paused").fetchone() == (0,)
    assert ann.act("/console/queues/pause", queue="default", next="/console/queues") == "default is paused."
    assert "Resume" in ann.get("/console/queues").text
    assert ann.act("/console/queues/resume", queue="default") == "default goes on."
    rows = db.execute("SELECT actor, action, target FROM audit_log WHERE action LIKE 'queue%' ORDER BY id").fetchall()
    assert rows == [("ann", "queue.pause", "default"), ("ann", "queue.resume", "default")]


def test_queue_that_is_not_there_is_refused_and_not_made(site: Site, db: psycopg.Connection[Any]) -> None:
    said = site.visitor("operator").act("/console/queues/pause", queue="nowhere", next="/console/queues")
    assert "there is no queue 'nowhere'" in said
    assert db.execute("SELECT count(*) FROM queues").fetchone() == (0,)


def test_queue_is_paused_in_a_browser(site: Site, tab: Callable[..., Page], shoot: Callable[[Page, str], None]) -> None:
    for number in range(3):
        tasks.add.delay(number, 1)
    page = tab("operator")
    page.goto("/console/queues")
    shoot(page, "queues")
    page.get_by_role("button", name="Pause default").click()
    expect(page.get_by_role("heading", name="Pause the queue default?")).to_be_visible()
    shoot(page, "confirm")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_have_text("default is paused.")
    expect(page.get_by_role("row", name="default")).to_contain_text("paused")
