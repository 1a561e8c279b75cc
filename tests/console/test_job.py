"""One job in the console: all that is known of it, live; acting on it; notes, who looks and who writes; and nothing that runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import psycopg
from celery import chord, group
from playwright.sync_api import Browser, Page, expect

from tests import sample_tasks as tasks
from tests.console.visitors import Site, inline
from tests.integration.conftest import Bench
from worker.engine.relay import Relay

Conn = psycopg.Connection[Any]

#: What would run, or leave its place, if a page took it for more than text.
ATTACKS = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(2)>", "\"><svg onload=alert(3)>", "' onfocus=alert(4) autofocus='",
    "{{ 7 * 7 }}", "javascript:alert(5)", "</pre></td><script>alert(6)</script>", "<a hx-get=/console/logout hx-trigger=load>",
)  # fmt: skip
ATTACK = " ".join(ATTACKS)


def insert_hostile(db: Conn, job_id: str = "hostile") -> None:
    """Write a job of the past that says the worst in every place where somebody else's words stand."""
    body = json.dumps([[ATTACK], {ATTACK: ATTACK}, {"callbacks": [{"task": ATTACK}], "chain": [{"task": ATTACK}]}])
    db.execute(
        """INSERT INTO job_history (id, task, queue, state, message, args, kwargs, caller, attempt, error, traceback, metadata,
                                    progress, claimed_at, idempotency_key, callback_url, root_id, group_id)
           VALUES (%(id)s, %(x)s, %(x)s, 'failed', %(message)s, %(x)s, %(x)s, %(x)s, 2, %(x)s, %(x)s, %(json)s, %(json)s,
                   clock_timestamp(), %(x)s, 'javascript:alert(9)', %(id)s, %(x)s)""",
        {"id": job_id, "x": ATTACK, "message": json.dumps({"body": body}), "json": json.dumps({ATTACK: ATTACK})},
    )
    db.execute(
        "INSERT INTO job_history (id, task, queue, state, message, parent_id, root_id, result, claimed_at)"
        " VALUES (%s, %s, '', 'succeeded', '{}', %s, %s, %s, clock_timestamp())",
        (f"{job_id}-child", ATTACK, job_id, job_id, json.dumps({ATTACK: [ATTACK]})),
    )
    db.execute("INSERT INTO attempts (job_id, attempt, outcome, error, traceback) VALUES (%s, 1, 'retry', %s, %s)",
               (job_id, ATTACK, ATTACK))  # fmt: skip
    db.execute("INSERT INTO job_notes (job_id, author, text) VALUES (%s, %s, %s)", (job_id, ATTACK, ATTACK))


def test_what_others_wrote_is_text_on_every_page_of_jobs(site: Site, db: Conn) -> None:
    insert_hostile(db)
    ann = site.visitor("operator")
    for path in ("/console/jobs", "/console/jobs?state=failed", "/console/jobs/hostile", "/console/jobs/hostile-child"):
        answer = ann.get(path)
        assert answer.status_code == 200, path
        assert inline(answer.text) == [], path
        assert "&lt;script&gt;alert(" in answer.text, path
        for attack in ATTACKS:
            if "<" in attack:
                assert attack not in answer.text, (path, attack)
        assert "{{ 7 * 7 }}" in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    for query in ("task", "queue", "caller", "text", "state", "since", "cursor", "id"):
        answer = ann.get("/console/jobs", params={query: ATTACK})
        assert inline(answer.text) == [], query
        assert "<script>alert(" not in answer.text, query


def test_hostile_words_run_nothing_in_a_browser(site: Site, tab: Callable[..., Page], db: Conn) -> None:
    insert_hostile(db)
    page = tab("operator")
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    for path in ("/console/jobs", "/console/jobs/hostile", "/console/jobs/hostile-child"):
        with page.expect_response(lambda answer: "/live" in answer.url) if "hostile" in path else page.expect_response("**/*"):
            page.goto(path)
        page.wait_for_timeout(300)  # what is sent live has been put in
        assert page.evaluate("document.querySelectorAll('main script, main img, main [onload], main [onfocus]').length") == 0
    expect(page.get_by_role("button", name="Log out")).to_be_visible()
    assert dialogs == []


def test_huge_arguments_results_and_tracebacks_are_cut(site: Site, db: Conn) -> None:
    huge = "x" * 600_000
    body = json.dumps([[huge], {"blob": huge}, {}])
    db.execute(
        "INSERT INTO job_history (id, task, queue, state, message, error, traceback, result, metadata, claimed_at)"
        " VALUES ('huge', 'blob', 'default', 'succeeded', %s, %s, %s, %s, %s, clock_timestamp())",
        (json.dumps({"body": body}), huge, huge + "THE END", json.dumps(huge), json.dumps({"m": huge})),
    )
    answer = site.visitor("viewer").get("/console/jobs/huge")
    assert answer.status_code == 200
    assert len(answer.text) < 250_000
    assert "characters" in answer.text
    assert "THE END" in answer.text, "the end of a traceback says most"


def test_job_whose_message_cannot_be_read_is_shown_all_the_same(site: Site, db: Conn) -> None:
    messages = ("{}", '{"body": 7}', '{"body": "not json"}', '{"body": "[1]"}', '{"raw": "AAA="}', "[]")
    ann = site.visitor("viewer")
    for number, message in enumerate(messages):
        row = (f"odd-{number}", message)
        db.execute(
            "INSERT INTO job_history (id, task, queue, state, message, args) VALUES (%s, 'odd', '', 'discarded', %s, '(1,)')", row
        )
        answer = ann.get(f"/console/jobs/odd-{number}")
        assert answer.status_code == 200, message
        assert "cannot be read" in answer.text
    assert ann.get("/console/jobs/there-is-none").status_code == 404


def test_acts_are_done_to_one_job_and_stand_in_the_trail(site: Site, db: Conn, relay: Relay, bench: Bench) -> None:
    ann = site.visitor("operator", "ann")
    later = tasks.add.apply_async((1, 2), countdown=3600).id
    assert "due now" in ann.act(f"/console/jobs/{later}/retry")
    assert db.execute("SELECT state FROM jobs WHERE id = %s", (later,)).fetchone() == ("queued",)
    assert "cancelled" in ann.act(f"/console/jobs/{later}/cancel")
    assert "queued again" in ann.act(f"/console/jobs/{later}/replay")
    assert "discarded" in ann.act(f"/console/jobs/{later}/discard")
    state = "SELECT state, error FROM job_history WHERE id = %s ORDER BY finished_at DESC LIMIT 1"
    assert db.execute(state, (later,)).fetchone() == ("discarded", "discarded by hand")
    assert "not waiting for its time" in ann.act(f"/console/jobs/{later}/retry", next=f"/console/jobs/{later}")
    rows = db.execute("SELECT actor, action, target FROM audit_log WHERE action LIKE 'job.%' ORDER BY id").fetchall()
    assert rows == [("ann", f"job.{verb}", later) for verb in ("retry", "cancel", "replay", "discard")], "not what failed"
    viewer = site.visitor("viewer")
    for verb in ("retry", "cancel", "replay", "discard"):
        assert viewer.send_form(f"/console/jobs/{later}/{verb}", confirmed="yes").status_code == 403
        assert "None" not in ann.send_form(f"/console/jobs/{later}/{verb}").text.partition("<main")[2]


def test_note_is_its_authors_to_remove_and_any_admins(site: Site, db: Conn) -> None:
    job_id = tasks.noop.delay().id
    path = f"/console/jobs/{job_id}/notes"
    ann, bob, eve = site.visitor("operator", "ann"), site.visitor("operator", "bob"), site.visitor("admin", "eve")
    ann.act(path, text="  waits for the bank\r\nuntil Monday ")
    ann.act(path, text="second")
    (first, text), (second, _) = db.execute("SELECT id, text FROM job_notes ORDER BY id").fetchall()
    assert text == "waits for the bank\nuntil Monday"
    assert "This note is ann&#39;s" in bob.get(bob.send_form(f"{path}/remove", note=first).headers["location"]).text
    assert "gone" in ann.act(f"{path}/remove", note=first)
    assert "gone" in eve.act(f"{path}/remove", note=second)
    assert "no such note" in eve.act(f"{path}/remove", note=second)
    for wrong in ("", "x", "-1", "9" * 30):
        assert "is no number of a note" in eve.act(f"{path}/remove", note=wrong)
    assert "a note has 1 to" in ann.act(path, text="   ", next=f"/console/jobs/{job_id}")
    assert site.visitor("viewer").send_form(path, text="no").status_code == 403
    rows = db.execute("SELECT actor, action FROM audit_log WHERE action LIKE 'note.%' ORDER BY id").fetchall()
    assert rows == [("ann", "note.add"), ("ann", "note.add"), ("ann", "note.remove"), ("eve", "note.remove")]


def test_family_of_a_canvas_is_shown_with_what_returned(
    site: Site, tab: Callable[..., Page], relay: Relay, bench: Bench, shoot: Callable[[Page, str], None]
) -> None:
    (tasks.add.s(1, 2) | chord(group(tasks.add.s(n) for n in range(3)), tasks.total.s())).apply_async()
    for _ in range(4):
        relay.round()
        ran = bench.work()
        if ran:
            last = ran[-1]
    page = tab("viewer")
    page.goto(f"/console/jobs/{last}")
    expect(page.locator(".tree li")).to_have_count(5)
    expect(page.locator(".tree [aria-current]")).to_contain_text(last)
    expect(page.get_by_role("button", name="Replay")).to_have_count(0)
    shoot(page, "job-family")


def test_job_is_followed_as_it_goes_on(
    site: Site, tab: Callable[..., Page], db: Conn, relay: Relay, bench: Bench, shoot: Callable[[Page, str], None]
) -> None:
    job_id = tasks.fail.apply_async(("no such order",), metadata={"order": 48213, "shop": "Berlin"}, caller="acme").id
    page = tab("operator")
    page.goto(f"/console/jobs/{job_id}")
    expect(page.get_by_text("It has not begun yet.")).to_be_visible()
    db.execute("UPDATE jobs SET progress = '{\"done\": 3, \"total\": 8, \"note\": \"third of eight\"}' WHERE id = %s", (job_id,))
    expect(page.get_by_text("3 of 8")).to_be_visible()
    expect(page.get_by_text("third of eight")).to_be_visible()
    relay.round()
    working = threading.Thread(target=bench.work)
    working.start()
    expect(page.locator(".standing .is-failed")).to_be_visible()
    expect(page.locator(".timeline")).to_contain_text("ValueError: no such order")
    working.join()
    shoot(page, "job")
    page.get_by_role("button", name="Replay…").click()
    page.get_by_role("button", name="Replay").click()
    expect(page.get_by_role("status").filter(has_text="queued again")).to_be_visible()
    expect(page.locator(".standing .is-queued")).to_be_visible()


def test_operators_see_who_else_looks_and_writes(
    site: Site, tab: Callable[..., Page], chrome: Browser, shoot: Callable[[Page, str], None]
) -> None:
    job_id = tasks.noop.delay().id
    pages = {}
    for name in ("ann", "bob"):
        visitor = site.visitor("operator", name)
        pages[name] = tab(None)
        pages[name].context.add_cookies([{"name": visitor.cookie, "value": visitor.session_id, "url": site.url}])
        pages[name].goto(f"/console/jobs/{job_id}")
    ann, bob = pages["ann"], pages["bob"]
    expect(ann.get_by_text("bob is looking at this")).to_be_visible()
    expect(bob.get_by_text("ann is looking at this")).to_be_visible()
    bob.get_by_label("Your note").press_sequentially("It waits for the bank")
    expect(ann.get_by_text("bob is writing a note…")).to_be_visible()
    shoot(ann, "job-presence")
    bob.get_by_role("button", name="Add the note").click()
    expect(ann.locator(".notes")).to_contain_text("It waits for the bank")
    expect(ann.get_by_text("bob is writing a note…")).to_have_count(0)
    bob.get_by_role("button", name="Remove this note of bob").click()
    expect(ann.get_by_text("Nobody has noted anything")).to_be_visible()
    bob.close()
    expect(ann.get_by_text("bob is looking at this")).to_have_count(0)


def test_pages_of_jobs_can_be_read_without_scripts(site: Site, tab: Callable[..., Page]) -> None:
    job_id = tasks.add.delay(1, 2).id
    page = tab("operator", java_script_enabled=False)
    page.goto("/console/jobs")
    page.get_by_role("link", name=tasks.add.name).click()
    expect(page.get_by_text(job_id).first).to_be_visible()
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text(f"{job_id} is cancelled.")).to_be_visible()


def test_stream_about_a_job_that_is_none_ends_at_once(site: Site) -> None:
    assert site.visitor("viewer").get("/console/jobs/none/live").text == "retry: 1000\n\n"
