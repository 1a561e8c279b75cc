"""The overview and the workers: what they show, and that they keep themselves current."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from playwright.sync_api import Page, expect

from tests import sample_tasks as tasks
from tests.console.visitors import Site
from tests.integration.conftest import Bench
from worker.db import statement
from worker.ledger import schedules
from worker.ledger.statistics import activity


def test_empty_system_says_what_to_do(site: Site) -> None:
    page = site.visitor("viewer").get("/console/").text
    for hint in ("holdfast run", "holdfast worker", "holdfast schedules add", "No job waits"):
        assert hint in page


def test_stream_tells_parts_and_ends_when_it_should(site: Site) -> None:
    ann = site.visitor("viewer")
    with ann.stream("GET", "/console/live/workers") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith("event:")) == "event: fleet"
        site.door.gateway.watch.end_waits()
        assert all(True for _ in lines), "it ends with the gateway"


def test_overview_keeps_itself_current(
    site: Site, bench: Bench, db: psycopg.Connection[Any], tab: Callable[..., Page], shoot: Callable[[Page, str], None]
) -> None:
    for number in range(5):
        tasks.add.delay(number, 1)
    tasks.fail.delay()
    bench.work()
    with statement() as conn:
        schedules.add(conn, schedules.Spec(name="nightly", task=tasks.add.name, args=[1, 1], crontab="0 3 * * *"))
    assert activity().by_task
    page = tab("viewer")
    page.goto("/console/")
    expect(page.get_by_role("row", name="nightly")).to_be_visible()
    expect(page.locator(".figure", has_text="Failed in 24 h")).to_contain_text("1")
    shoot(page, "overview")
    waiting = page.locator(".figure", has_text="Waiting")
    expect(waiting).to_contain_text("0")
    for number in range(3):
        tasks.add.delay(number, 1)
    expect(waiting).to_contain_text("3", timeout=20_000)
    bench.node.register()
    page.get_by_role("link", name="Workers").click()
    expect(page.get_by_role("row", name="bench")).to_contain_text("up")
    shoot(page, "workers")


def test_pages_read_without_scripts(site: Site, tab: Callable[..., Page]) -> None:
    page = tab("operator", java_script_enabled=False, viewport={"width": 390, "height": 844})
    page.goto("/console/")
    page.locator("summary").click()
    page.get_by_role("link", name="Queues").click()
    page.get_by_role("button", name="Pause default").click()
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("default is paused.")
    page.get_by_label("Colours").select_option("dark")
    page.get_by_role("button", name="Set").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


def test_keyboard_reaches_the_content_at_once_and_sees_where_it_is(site: Site, tab: Callable[..., Page]) -> None:
    page = tab("operator")
    page.goto("/console/queues")
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('button[aria-label=\"Pause default\"]')"):
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Pause the queue default?")).to_be_visible()
