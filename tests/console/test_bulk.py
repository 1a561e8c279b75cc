"""Acting on many jobs in the console: what is meant is asked, a job does it, and it can be watched and stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Page, expect

from tests import sample_tasks as tasks
from tests.console.visitors import Site
from tests.integration.conftest import Bench
from worker.engine.relay import Relay
from worker.ledger import bulk, manage
from worker.tasks.bulk import act_on_many

Conn = psycopg.Connection[Any]


assert act_on_many.name == bulk.TASK  # imported, as every task is where a gateway runs


def states(db: Conn) -> dict[str, int]:
    found = db.execute(
        "SELECT state, count(*) FROM (SELECT state, task FROM jobs UNION ALL SELECT state, task FROM job_history) AS every"
        " WHERE task <> %s GROUP BY 1", (bulk.TASK,),
    ).fetchall()  # fmt: skip
    return dict(found)


def test_search_is_cancelled_by_a_job_in_a_browser(
    site: Site, tab: Callable[..., Page], db: Conn, relay: Relay, bench: Bench, shoot: Callable[[Page, str], None]
) -> None:
    for number in range(12):
        tasks.add.apply_async((number, 1), countdown=3600)
    kept = tasks.noop.apply_async(countdown=3600).id
    page = tab("operator")
    page.goto(f"/console/jobs?task={tasks.add.name}")
    page.get_by_label("All that this search means").check()
    page.get_by_role("button", name="Cancel…").click()
    expect(page.get_by_role("heading", name="Cancel 12 jobs?")).to_be_visible()
    shoot(page, "bulk-confirm")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("It waits for a worker")).to_be_visible()
    shoot(page, "bulk-waits")
    address = page.url
    page.goto("/console/jobs")  # nobody looks: it goes on
    relay.round()
    bench.work()
    assert states(db) == {"cancelled": 12, "scheduled": 1}
    assert db.execute("SELECT state FROM jobs WHERE id = %s", (kept,)).fetchone() == ("scheduled",)
    page.goto(address)
    expect(page.locator("#bulk")).to_contain_text("Cancelled")
    expect(page.locator("#bulk .facts").first).to_contain_text("12")
    shoot(page, "bulk")
    rows = db.execute("SELECT action FROM audit_log WHERE action LIKE 'bulk%' ORDER BY id").fetchall()
    assert rows == [("bulk.cancel",), ("bulk.cancel.end",)]


def test_ticked_jobs_are_replayed_and_what_refuses_is_told(site: Site, db: Conn, relay: Relay, bench: Bench) -> None:
    ann = site.visitor("operator", "ann")
    failed = [tasks.fail.delay().id for _ in range(3)]
    waits = tasks.add.apply_async((1, 2), countdown=3600).id
    relay.round()
    bench.work()
    asked = ann.send_form("/console/bulk", {"verb": "replay", "ids": [*failed, waits]})
    assert "Replay 4 jobs?" in asked.text
    answer = ann.send_form("/console/bulk", {"verb": "replay", "ids": [*failed, waits], "confirmed": "yes"})
    assert answer.status_code == 303
    relay.round()
    bench.run(bench.take() or {})  # the job goes before what it queues
    shown = ann.get(answer.headers["location"]).text
    assert "Queued again</dt><dd>3" in shown
    assert "Refused</dt><dd>1" in shown
    assert "is not finished" in shown
    assert db.execute("SELECT count(*) FROM jobs WHERE id = ANY(%s)", (failed,)).fetchone() == (3,)


@pytest.mark.parametrize(("verb", "state", "becomes"), [
    ("retry", "scheduled", {"queued": 5}), ("discard", "", {"discarded": 5}), ("cancel", "living", {"cancelled": 5}),
])  # fmt: skip
def test_every_act_is_done_to_all_that_a_search_means(
    site: Site, db: Conn, relay: Relay, bench: Bench, verb: str, state: str, becomes: dict[str, int]
) -> None:
    for number in range(5):
        tasks.add.apply_async((number, 1), countdown=3600)
    ann = site.visitor("operator")
    ann.act("/console/bulk", verb=verb, all="yes", state=state)
    relay.round()
    bench.run(bench.take() or {})
    assert states(db) == becomes


def test_bulk_act_that_is_told_to_stop_stops_and_says_how_far_it_came(
    site: Site, db: Conn, relay: Relay, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.tasks.bulk._LOOK_S", 0.0)
    ids = [tasks.add.apply_async((number, 1), countdown=3600).id for number in range(6)]
    ann = site.visitor("operator", "ann")
    where = ann.send_form("/console/bulk", verb="cancel", all="yes", confirmed="yes").headers["location"]
    job_id = where.rpartition("/")[2]
    relay.round()
    db.execute("CREATE FUNCTION stop_after_two() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
               " IF (SELECT count(*) FROM job_history) >= 2 THEN UPDATE jobs SET cancel_requested = true WHERE id = '" + job_id +
               "'; END IF; RETURN NULL; END $$")  # fmt: skip
    db.execute("CREATE TRIGGER stop_after_two AFTER INSERT ON job_history FOR EACH ROW EXECUTE FUNCTION stop_after_two()")
    try:
        bench.work()
    finally:
        db.execute("DROP FUNCTION stop_after_two CASCADE")
    assert db.execute("SELECT count(*) FROM jobs WHERE id = ANY(%s)", (ids,)).fetchone() == (4,)
    assert "stopped" in ann.get(where).text
    waits = ann.send_form("/console/bulk", verb="cancel", all="yes", confirmed="yes").headers["location"]
    ann.act(f"{waits}/stop")
    relay.round()
    assert db.execute("SELECT state FROM job_history WHERE id = %s", (waits.rpartition("/")[2],)).fetchone() == ("cancelled",)


def test_bulk_act_that_makes_no_sense_is_refused(site: Site, db: Conn) -> None:
    ann, back = site.visitor("operator"), "/console/jobs"
    tasks.add.apply_async((1, 1), countdown=3600)
    assert "verb: 'burn' is none of" in ann.act("/console/bulk", verb="burn", all="yes", next=back)
    assert "No job is ticked" in ann.act("/console/bulk", verb="cancel", next=back)
    assert "cannot be meant here" in ann.act("/console/bulk", verb="retry", all="yes", state="failed", next=back)
    assert "is no moment" in ann.act("/console/bulk", verb="cancel", all="yes", since="soon", next=back)
    refused = ann.send_form("/console/bulk", verb="replay", all="yes", next=back)
    assert "No job that this search means is failed or discarded" in ann.get(refused.headers["location"]).text
    manage.set_paused(db, "default", True)
    assert "Every queue is paused" in ann.act("/console/bulk", verb="cancel", all="yes", next=back)
    assert site.visitor("viewer").send_form("/console/bulk", verb="cancel", all="yes", confirmed="yes").status_code == 403
    assert db.execute("SELECT count(*) FROM jobs WHERE task = %s", (bulk.TASK,)).fetchone() == (0,)
    assert ann.get(f"/console/bulk/{tasks.noop.delay().id}").status_code == 404


def test_a_bulk_act_that_no_operator_asked_for_does_nothing(site: Site, db: Conn, relay: Relay, bench: Bench) -> None:
    """Whoever may enqueue may call any task, this one included; a name of an operator is no proof."""
    tasks.add.apply_async((1, 1), countdown=3600)
    ann = site.visitor("operator", "ann")
    ann.act("/console/bulk", verb="retry", all="yes")  # another act of hers does not count
    relay.round()
    bench.run(bench.take() or {})
    forged = act_on_many.delay(verb="discard", by="ann", which={})
    relay.round()
    bench.work()
    assert states(db)["succeeded"] == 1
    found = db.execute("SELECT state, error FROM job_history WHERE id = %s", (forged.id,)).fetchone()
    assert found is not None
    assert found[0] == "failed"
    assert "no operator 'ann' asked for this job" in found[1]
    assert db.execute("SELECT count(*) FROM audit_log WHERE target = %s", (forged.id,)).fetchone() == (0,)
