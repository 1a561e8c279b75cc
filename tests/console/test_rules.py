"""Flags, and callers with their keys, in the console."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from playwright.sync_api import Page, expect

from tests import sample_tasks as tasks
from tests.console.refusing import come_back
from tests.console.visitors import Site
from tests.integration.conftest import Bench
from worker.ledger import flags

ADD = tasks.add.name
FLAG = {"is_new": "yes", "name": "new-report", "value": "on", "percent": "", "allow": "", "deny": "", "note": "as asked"}
CALLER = {"name": "acme", "scopes": "enqueue", "tasks": "", "queues": "", "rate": ""}


def test_switch_parks_jobs_and_lets_them_go_on_in_a_browser(
    site: Site, tab: Callable[..., Page], shoot: Callable[[Page, str], None], db: psycopg.Connection[Any], bench: Bench
) -> None:
    page = tab("admin")
    page.goto("/console/flags")
    page.get_by_role("link", name="Set a flag").click()
    page.get_by_label("Name").fill(f"task:{ADD}")
    page.get_by_label("It is").select_option("on")
    page.get_by_label("Share in percent").fill("half")
    page.get_by_label("Off for").fill("caller=acme\ncaller=busy")
    page.get_by_label("Note").fill("too slow since Monday")
    page.get_by_role("button", name="Set").click()
    expect(page.locator("#e-percent")).to_contain_text("'half' is not a percentage from 0 to 100")
    expect(page.get_by_label("Off for")).to_have_value("caller=acme\ncaller=busy")
    shoot(page, "flag-form")
    page.get_by_label("Share in percent").fill("")
    page.get_by_role("button", name="Set").click()
    row = page.get_by_role("row", name=f"task:{ADD}")
    expect(row).to_contain_text("off for caller=acme, caller=busy")
    page.get_by_role("button", name=f"Turn off task:{ADD}").click()
    page.get_by_role("button", name="Turn off").click()
    expect(page.get_by_role("status")).to_have_text(f"task:{ADD} is off.")
    flags.forget()  # this process is the worker as well, and would have a second's time to see it
    tasks.add.apply_async((1, 2))
    bench.work()
    page.reload()
    expect(row.locator("[data-label='Parked jobs']")).to_have_text("1")
    site.visitor("admin").act("/console/flags/set", {**FLAG, "allow": "caller=acme"})
    page.reload()
    shoot(page, "flags")
    page.get_by_role("link", name=f"task:{ADD}", exact=True).click()
    expect(page.get_by_role("row")).to_have_count(3)
    shoot(page, "flag")
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("status")).to_have_text(f"task:{ADD} is removed.")
    rows = db.execute("SELECT action FROM audit_log WHERE target = %s ORDER BY id", (f"task:{ADD}",)).fetchall()
    assert rows == [("flag.set",), ("flag.set",), ("flag.remove",)]
    expect(page.get_by_role("row", name="new-report")).to_be_visible()


def test_caller_is_added_changed_rotated_and_revoked_in_a_browser(
    site: Site, tab: Callable[..., Page], shoot: Callable[[Page, str], None], db: psycopg.Connection[Any]
) -> None:
    page = tab("admin")
    page.goto("/console/callers")
    page.get_by_role("link", name="New caller").click()
    page.get_by_label("Name").fill("acme")
    page.get_by_label("Tasks").fill("reports.*")
    page.get_by_label("Most requests").fill("often")
    page.get_by_role("button", name="Add").click()
    expect(page.locator("#e-rate")).to_contain_text("often")
    shoot(page, "caller-form")
    page.get_by_label("Most requests").fill("100/second")
    page.get_by_role("button", name="Add").click()
    key = page.get_by_label("Key").input_value()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    shoot(page, "caller-key")
    assert site.door.client(key).get("/v1/jobs").status_code == 200
    page.get_by_role("link", name="Done").click()
    expect(page.get_by_role("row", name="acme")).to_contain_text("reports.*")
    page.get_by_role("link", name="Rotate the key of acme").click()
    shoot(page, "caller-rotate")
    page.get_by_label("The key it has counts for").fill("0")
    page.get_by_role("button", name="Rotate").click()
    newer = page.get_by_label("Key").input_value()
    assert newer != key
    assert site.door.client(key).get("/v1/jobs").status_code == 401
    page.get_by_role("link", name="Done").click()
    page.get_by_role("link", name="Edit acme").click()
    page.get_by_label("look at its own jobs").uncheck()
    page.get_by_role("button", name="Save").click()
    shoot(page, "callers")
    page.get_by_role("link", name="acme", exact=True).click()
    shoot(page, "caller")
    page.get_by_role("button", name="Revoke").click()
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("revoked")
    assert site.door.client(newer).get("/v1/jobs").status_code == 401
    rows = db.execute("SELECT action, details::text FROM audit_log WHERE target = 'acme' ORDER BY id").fetchall()
    assert [row[0] for row in rows] == [f"caller.{what}" for what in ("add", "rotate", "change", "revoke")]
    assert not any(secret in row[1] for row in rows for secret in (key, newer, key[11:], newer[11:]))


def test_flag_and_caller_forms_come_back_with_the_error_at_its_field(site: Site, db: psycopg.Connection[Any]) -> None:
    ann = site.visitor("admin")
    for field, value, said in [
        ("name", "", "is not a name"), ("value", "perhaps", "a flag is on or off"), ("percent", "101", "from 0 to 100"),
        ("allow", "acme", "is not attribute=value"), ("deny", "caller=", "is not attribute=value"),
        ("note", "x" * 1001, "at most"),
    ]:  # fmt: skip
        come_back(ann, "/console/flags/set", FLAG, field, value, said)
    for field, value, said in [
        ("name", "two words", "is not 1 to 64 letters"), ("scopes", "everything", "are not some of enqueue, read, admin"),
        ("tasks", "x" * 256, "a line of 1 to 255 characters"), ("queues", "y" * 256, "a line of 1 to 255 characters"),
        ("rate", "3 concurrent", "at the same time"),
    ]:  # fmt: skip
        come_back(ann, "/console/callers/new", CALLER, field, value, said)
    assert db.execute("SELECT (SELECT count(*) FROM flags), (SELECT count(*) FROM callers)").fetchone() == (0, 0)


def test_key_is_rotated_once_by_one_form(site: Site, db: psycopg.Connection[Any]) -> None:
    ann = site.visitor("admin")
    ann.send_form("/console/callers/new", CALLER)
    prefix = db.execute("SELECT prefix FROM callers").fetchone()
    assert prefix is not None
    fields = {"name": "acme", "prefix": prefix[0], "next": "/console/callers"}
    come_back(ann, "/console/callers/rotate", fields, "overlap", "a while", "is not a duration")
    assert ann.send_form("/console/callers/rotate", fields, overlap="1h").status_code == 200
    assert "was given anew meanwhile" in ann.act("/console/callers/rotate", fields, overlap="1h")
    assert db.execute("SELECT count(*) FROM audit_log WHERE action = 'caller.rotate'").fetchone() == (1,)
