"""The cache, the streams and the deliveries of callbacks in the console."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
from playwright.sync_api import Page, expect

from tests.console.refusing import come_back
from tests.console.visitors import Site, inline
from worker.app import app
from worker.cache import Region, hot
from worker.ledger import webhooks
from worker.streams import DeadLetters, Group, Stream

NASTY = "<script>alert(1)</script>"
BOOKS = Region("books", ttl=60.0, type=dict[str, str])


def test_cache_is_looked_into_and_forgotten_in_a_browser(
    site: Site, tab: Callable[..., Page], shoot: Callable[[Page, str], None], db: psycopg.Connection[Any]
) -> None:
    BOOKS.get_or_load("7", lambda: {"title": NASTY}, tags=["shelf"])
    for _ in range(400):
        hot.note("statistics.activity", (24,))
    hot.flush()
    page = tab("operator")
    page.goto("/console/cache")
    expect(page.get_by_role("row", name="statistics.activity [24]").first).to_be_visible()
    page.get_by_label("Keys").fill("x" * 2000)
    page.get_by_role("button", name="Forget", exact=True).click()
    expect(page.locator("#e-keys")).to_contain_text("more than 1024")
    shoot(page, "cache")
    page.get_by_label("Key", exact=True).fill("books:7")
    page.get_by_role("button", name="Look").click()
    expect(page.get_by_text(NASTY)).to_be_visible()
    shoot(page, "cache-entry")
    page.get_by_role("button", name="Forget it").click()
    page.get_by_role("button", name="Forget").click()
    expect(page.get_by_role("status")).to_have_text("Forgotten: books:7.")
    BOOKS.get_or_load("8", lambda: {"title": "eight"}, tags=["shelf"])
    page.get_by_label("Tags").fill("shelf")
    page.get_by_role("button", name="Forget", exact=True).click()
    page.get_by_role("button", name="Forget").click()
    page.goto("/console/cache/entry?key=books:8")
    expect(page.get_by_text("dropped by a tag")).to_be_visible()
    assert BOOKS.get_or_load("7", lambda: {"title": "new"}) == {"title": "new"}
    rows = db.execute("SELECT target, details FROM audit_log WHERE action = 'cache.invalidate' ORDER BY id").fetchall()
    assert rows == [("books:7", {"keys": ["books:7"], "tags": []}), ("all under shelf", {"keys": [], "tags": ["shelf"]})]
    page.goto("/console/cache")
    page.get_by_role("button", name="Warm now").click()
    expect(page.get_by_role("status")).to_contain_text("A worker warms the cache")
    assert db.execute("SELECT task FROM jobs").fetchall() == [("cache.warm",)]


def test_dead_letters_are_put_back_and_dropped_in_a_browser(
    site: Site, tab: Callable[..., Page], shoot: Callable[[Page, str], None], db: psycopg.Connection[Any]
) -> None:
    stream = Stream.called("intake")
    stream.append_many([{"task": NASTY, "n": n} for n in range(6)])
    group, letters = Group(stream, "holdfast", consumer="intake-1"), DeadLetters(stream)
    for entry in group.read(limit=4):
        letters.put(group, entry, f"no task {NASTY!r} is registered", code="unknown_task", field="task")
    page = tab("operator")
    page.goto("/console/streams")
    told = page.get_by_role("row", name="holdfast").get_by_role("cell")
    expect(told.nth(0)).to_have_text("2")
    expect(told.nth(3)).to_contain_text("intake-1 reads")
    page.get_by_role("group").first.locator("summary").click()
    expect(page.get_by_text(NASTY).first).to_be_visible()
    assert inline(page.content()) == []
    shoot(page, "streams")
    newest = letters.list()[0].id
    page.get_by_role("button", name=f"Drop {newest}").click()
    page.get_by_role("button", name="Drop").click()
    expect(page.get_by_role("status")).to_have_text(f"{newest} is dropped.")
    page.get_by_role("button", name=f"Requeue {letters.list()[0].id}").click()
    expect(page.get_by_role("status")).to_contain_text("at the end of intake")
    page.get_by_role("button", name="Requeue all").click()
    page.get_by_role("button", name="Requeue all").click()
    expect(page.get_by_role("status")).to_have_text("2 dead letters of intake are put back.")
    assert (len(letters), len(group.read())) == (0, 5)
    rows = db.execute("SELECT action FROM audit_log WHERE target = 'intake' ORDER BY id").fetchall()
    assert rows == [("stream.drop",), ("stream.requeue",), ("stream.requeue_all",)]


def test_queue_is_given_a_window_in_a_browser(
    site: Site, tab: Callable[..., Page], shoot: Callable[[Page, str], None], db: psycopg.Connection[Any]
) -> None:
    for priority in (0, 5, 5, 9):
        app.send_task("tests.sample_tasks.noop", priority=priority)
    page = tab("operator")
    page.goto("/console/queues")
    page.get_by_role("link", name="default", exact=True).click()
    expect(page.get_by_role("row", name="3 to 5").get_by_role("cell")).to_have_text(["0", "2", "2"])
    page.get_by_label("Jobs in Redis at a time").fill("3")
    page.get_by_role("button", name="Set the window").click()
    expect(page.get_by_role("status")).to_have_text("The window of default is 3.")
    expect(page.get_by_text("of a window of 3")).to_be_visible()
    shoot(page, "queue")
    assert db.execute('SELECT "window" FROM queues').fetchall() == [(3,)]


def test_delivery_is_shown_and_sent_again_in_a_browser(
    site: Site, tab: Callable[..., Page], shoot: Callable[[Page, str], None], db: psycopg.Connection[Any]
) -> None:
    payload = json.dumps({"type": "job.succeeded", "data": {"note": NASTY}})
    told = {"url": "http://127.0.0.1:9/hook", "host": "127.0.0.1:9", "payload": payload}
    found = app.send_task(webhooks.TASK, kwargs=told, countdown=3600).id
    other = app.send_task("tests.sample_tasks.noop").id
    page = tab("operator")
    page.goto("/console/webhooks")
    expect(page.get_by_role("row", name="127.0.0.1:9")).to_contain_text("job.succeeded")
    shoot(page, "webhooks")
    page.get_by_role("link", name=found[:13]).click()
    expect(page.get_by_text(NASTY)).to_be_visible()
    shoot(page, "webhook")
    page.get_by_role("button", name="Deliver again").click()
    page.get_by_role("button", name="Deliver again").click()
    expect(page.get_by_role("status")).to_have_text(f"{found} is due now.")
    assert db.execute("SELECT state FROM jobs WHERE id = %s", (found,)).fetchone() == ("queued",)
    ann = site.visitor("operator")
    assert "no delivery of a callback" in ann.act("/console/webhooks/redeliver", id=other, next="/console/webhooks")
    assert ann.get(f"/console/webhooks/one?id={other}").status_code == 404
    assert "is not a cursor" in ann.get("/console/webhooks?before=x").text
    rows = db.execute("SELECT target FROM audit_log WHERE action = 'webhook.redeliver'").fetchall()
    assert rows == [(found,)]


def test_forms_of_queues_and_cache_come_back_with_the_error_at_its_field(site: Site, db: psycopg.Connection[Any]) -> None:
    ann = site.visitor("operator")
    for value in ("0", "-1", "many", "100001", "1.5"):
        come_back(ann, "/console/queues/window", {"queue": "default"}, "window", value, "a whole number from 1 to 100000")
    assert ann.act("/console/queues/window", queue="default", window="7") == "The window of default is 7."
    assert "as the setting says" in ann.act("/console/queues/window", queue="default", window="")
    nothing = ann.send_form("/console/cache/forget", keys="", tags="")
    assert (nothing.status_code, "give keys, or tags" in nothing.text) == (422, True)
    come_back(ann, "/console/cache/forget", {"keys": "books:7"}, "tags", "t" * 1025, "more than 1024")
    answer = ann.get("/console/cache/entry", params={"key": "x" * 2000})
    assert (answer.status_code, 'id="e-key"' in answer.text) == (422, True)
    rows = db.execute("SELECT details->'window' FROM audit_log WHERE action = 'queue.set_window' ORDER BY id").fetchall()
    assert rows == [(7,), (None,)]
