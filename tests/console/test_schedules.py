"""Schedules in the console: making, changing, firing and pausing one, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from playwright.sync_api import Page, expect

from tests import sample_tasks as tasks
from tests.console.refusing import come_back
from tests.console.visitors import Site

ADD = tasks.add.name

#: A form that is taken.
GOOD = {"name": "sums", "task": ADD, "args": "[1, 2]", "kwargs": "{}", "every": "5m", "crontab": "", "timezone": "UTC",
        "catch_up": "once", "queue": "", "priority": "", "expires": "", "enabled": "yes"}  # fmt: skip


def test_schedule_is_made_changed_fired_paused_and_removed_in_a_browser(
    site: Site, tab: Callable[..., Page], shoot: Callable[[Page, str], None], db: psycopg.Connection[Any]
) -> None:
    page = tab("operator")
    page.goto("/console/schedules")
    page.get_by_role("link", name="New schedule").click()
    page.get_by_label("Name", exact=True).fill("sums")
    page.get_by_label("Task", exact=True).fill(ADD)
    page.get_by_label("Arguments", exact=True).fill("[1, 2, 3]")
    page.get_by_label("Interval").fill("5m")
    page.get_by_role("button", name="Add").click()
    wrong = page.get_by_label("Arguments", exact=True)
    expect(wrong).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#e-args")).to_contain_text("it takes 2")
    expect(page.get_by_label("Interval")).to_have_value("5m")
    shoot(page, "schedule-form")
    wrong.fill("[1, 2]")
    page.get_by_role("button", name="Add").click()
    expect(page.get_by_role("status")).to_have_text("sums is added.")
    page.get_by_role("button", name="Fire sums").click()
    page.get_by_role("button", name="Fire").click()
    expect(page.get_by_role("status")).to_contain_text("sums is fired: job ")
    assert db.execute("SELECT task, args FROM jobs").fetchall() == [(ADD, "(1, 2)")]
    page.get_by_role("link", name="Edit sums").click()
    page.get_by_label("Interval").fill("")
    page.get_by_label("Crontab", exact=True).fill("0 8 * * mon-fri")
    page.get_by_label("Time zone of the crontab").fill("Europe/Berlin")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("row", name="sums")).to_contain_text("0 8 * * mon-fri (Europe/Berlin)")
    shoot(page, "schedules")
    page.get_by_role("link", name="sums", exact=True).click()
    expect(page.get_by_role("listitem").filter(has_text="UTC")).to_have_count(5)
    shoot(page, "schedule")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("paused")
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("status")).to_have_text("sums is removed.")
    rows = db.execute("SELECT action, target FROM audit_log WHERE action LIKE 'schedule%' ORDER BY id").fetchall()
    done = ["add", "fire", "edit", "pause", "resume", "remove"]
    assert rows == [(f"schedule.{what}", "sums") for what in done]


#: What is entered in a field, and what is said there.
WRONG = [
    ("name", "", "a line of 1 to 200 characters"),
    ("task", "no.such.task", "no task 'no.such.task' is registered"),
    ("args", "1, 2", "is not JSON"),
    ("kwargs", '{"z": 1}', "there is no such argument"),
    ("every", "soon", "is not a duration"),
    ("crontab", "0 8 * * *", "not both or neither"),
    ("timezone", "Mars/Olympus", "Mars/Olympus"),
    ("catch_up", "twice", "skip, once or all"),
    ("queue", "nowhere", "there is no 'nowhere'"),
    ("priority", "10", "not a number from 0"),
    ("expires", "-1", "is not a duration"),
]


def test_schedule_form_comes_back_with_the_error_at_its_field(site: Site, db: psycopg.Connection[Any]) -> None:
    ann = site.visitor("operator")
    for field, value, said in WRONG:
        come_back(ann, "/console/schedules/new", GOOD, field, value, said)
    assert db.execute("SELECT count(*) FROM schedules WHERE source = 'people'").fetchone() == (0,)
    assert db.execute("SELECT count(*) FROM audit_log WHERE action = 'schedule.add'").fetchone() == (0,)


def test_schedule_of_the_code_is_only_paused_here(site: Site, db: psycopg.Connection[Any]) -> None:
    db.execute(
        "INSERT INTO schedules (name, task, args, every_s, source, anchor, next_tick)"
        " VALUES ('tidy', %s, '[1, 2]', 60, 'code', now(), now())",
        (ADD,),
    )
    ann = site.visitor("operator")
    assert "declared in code" in ann.act("/console/schedules/remove", name="tidy", next="/console/schedules")
    changed = ann.send_form("/console/schedules/edit", {**GOOD, "name": "tidy", "every": "1h"})
    assert changed.status_code == 422
    assert "declared in code" in changed.text
    assert ann.act("/console/schedules/pause", name="tidy") == "tidy is paused."
    assert db.execute("SELECT enabled, every_s FROM schedules WHERE name = 'tidy'").fetchone() == (False, 60)
