"""The relay among bad rows: in none of its parts does one hold up the others."""

from __future__ import annotations

import json
import random
import string
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.integration.conftest import Bench
from tests.sample_tasks import add
from worker.engine.relay import Relay
from worker.ledger import manage
from worker.store import keys

Conn = psycopg.Connection[Any]

#: As long as the index of living jobs takes, and longer than that of the past does: no statement can end or requeue its job.
ENDLESS = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=2688))

_INSERT = """
INSERT INTO jobs (id, task, queue, state, message, available_at, expires_at, cancel_requested, dispatch_epoch, dispatched_at,
                  worker_id, claim_token, claimed_at)
VALUES (%(id)s, 'tests.sample_tasks.add', 'default', %(state)s, %(message)s, coalesce(%(available_at)s, clock_timestamp()),
        %(expires_at)s, %(cancel)s, %(epoch)s, %(dispatched_at)s, %(worker)s, %(token)s, %(claimed_at)s)
"""
_NOTHING = dict.fromkeys(("available_at", "expires_at", "epoch", "dispatched_at", "worker", "token", "claimed_at"))


def message(job_id: str, embed: Any = None, **changes: Any) -> dict[str, Any]:
    """Return the message of a job that adds, to be spoiled."""
    sound = {"headers": {"task": add.name, "id": job_id}, "properties": {}, "body": json.dumps([[1, 2], {}, embed or {}])}
    return {**sound, **changes}


def insert(db: Conn, job_id: str, what: Any = None, *, state: str = "queued", cancel: bool = False, **values: Any) -> None:
    """Put a job in by SQL alone, as anybody may."""
    text = json.dumps(message(job_id) if what is None else what)
    db.execute(_INSERT, {**_NOTHING, "id": job_id, "state": state, "message": text, "cancel": cancel, **values})


def ended(db: Conn, job_id: str) -> Any:
    """Return the state in which a job ended, None while it lives."""
    row = db.execute("SELECT state FROM job_history WHERE id = %s", (job_id,)).fetchone()
    return row and row[0]


def living(db: Conn) -> list[str]:
    return [row[0] for row in db.execute("SELECT id FROM jobs ORDER BY id")]


# ---- what a row may hold


UNSENDABLE: dict[str, Any] = {
    "a number": 5,
    "null": None,
    "a text": "x",
    "an embed that is a list": message("bad", embed=[1]),
    "an embed that is a text": message("bad", embed="x"),
    "a timelimit that is a text": message("bad", headers={"task": add.name, "id": "bad", "timelimit": "60"}),
    "a timelimit of three": message("bad", headers={"task": add.name, "id": "bad", "timelimit": [1, 2, 3]}),
    "a timelimit in words": message("bad", headers={"task": add.name, "id": "bad", "timelimit": ["soon", None]}),
    "a type nobody can build in a header": message(
        "bad", headers={"task": add.name, "id": "bad", "x": {"__type__": "uuid", "__value__": {"hex": 1}}}
    ),
    "a type nobody can build in a property": message("bad", properties={"x": {"__type__": "datetime", "__value__": "never"}}),
}


@pytest.mark.parametrize("case", UNSENDABLE)
def test_row_that_no_worker_could_take_is_set_aside_and_those_behind_it_run(
    case: str, db: Conn, bench: Bench, relay: Relay
) -> None:
    db.execute(_INSERT, {**_NOTHING, "id": "bad", "state": "queued", "message": json.dumps(UNSENDABLE[case]), "cancel": False})
    insert(db, "good")
    relay.round()
    assert bench.work() == ["good"]
    assert (ended(db, "bad"), ended(db, "good")) == ("discarded", "succeeded")
    (entry,) = manage.list_jobs(db, manage.Filter(states=["discarded"]))
    assert entry["error"].startswith("the message cannot be sent: ")


def test_type_of_celerys_json_in_a_header_of_a_row_is_built_for_the_task(db: Conn, bench: Bench, relay: Relay) -> None:
    kept = {"__type__": "datetime", "__value__": "2030-01-01T00:00:00"}
    insert(db, "typed", message("typed", headers={"task": add.name, "id": "typed", "x-when": kept}))
    relay.round()
    (waiting,) = bench.waiting()
    assert waiting["headers"]["x-when"].year == 2030
    bench.work()
    assert ended(db, "typed") == "succeeded"


LINKS: dict[str, Any] = {
    "a chain of texts": {"chain": ["x"]}, "a chain that is a number": {"chain": 5}, "callbacks of texts": {"callbacks": ["x"]},
    "error callbacks of texts": {"errbacks": ["x"]}, "error callbacks that are a number": {"errbacks": 5},
    "a chord that is a text": {"chord": "x"}, "a chord that is a number": {"chord": 5},
}  # fmt: skip


@pytest.mark.parametrize("args", [[1, 2], [1]], ids=["succeeds", "fails"])
@pytest.mark.parametrize("case", LINKS)
def test_job_whose_links_are_no_tasks_ends_all_the_same(
    case: str, args: list[int], db: Conn, bench: Bench, relay: Relay
) -> None:
    headers = {"task": add.name, "id": "odd", "group": "a group"}
    insert(db, "odd", message("odd", headers=headers, body=json.dumps([args, {}, LINKS[case]])))
    relay.send_due()
    assert bench.work(most=1) == ["odd"]
    assert ended(db, "odd") in ("succeeded", "failed")


@pytest.mark.parametrize("case", LINKS)
def test_job_whose_links_are_no_tasks_expires(case: str, db: Conn, bench: Bench, relay: Relay) -> None:
    headers = {"task": add.name, "id": "odd", "group": "a group"}
    insert(db, "odd", message("odd", LINKS[case], headers=headers), expires_at="2001-01-01")
    relay.expire()
    assert ended(db, "odd") == "expired"


@pytest.mark.parametrize("moment", ["-infinity", "0044-03-15 12:00:00+00 BC"])
def test_row_that_was_due_before_all_time_runs_first_and_can_be_shown(
    moment: str, db: Conn, bench: Bench, relay: Relay
) -> None:
    insert(db, "good")
    insert(db, "old", available_at=moment)
    relay.round()
    assert bench.work() == ["old", "good"]
    assert {job["id"]: job["state"] for job in manage.list_jobs(db, manage.Filter())} == {"old": "succeeded", "good": "succeeded"}
    assert manage.show(db, "old")["state"] == "succeeded"


def test_row_that_expired_before_all_time_is_ended_and_can_be_shown(db: Conn, bench: Bench, relay: Relay) -> None:
    insert(db, "over", expires_at="-infinity")
    insert(db, "good", expires_at="9999-01-01")
    relay.expire()
    relay.send_due()
    assert bench.work() == ["good"]
    assert (ended(db, "over"), ended(db, "good")) == ("expired", "succeeded")
    assert manage.show(db, "over")["expires_at"].year == 1


# ---- each part of the relay


def test_row_that_cannot_be_ended_does_not_keep_others_from_expiring(db: Conn, bench: Bench, relay: Relay) -> None:
    insert(db, ENDLESS, epoch="e", dispatched_at="now", expires_at="2001-01-01")
    insert(db, "good", expires_at="2001-01-02")
    relay.expire()
    assert ended(db, "good") == "expired"
    assert living(db) == [ENDLESS]


def test_row_that_cannot_be_ended_does_not_keep_others_from_being_cancelled(db: Conn, bench: Bench, relay: Relay) -> None:
    insert(db, ENDLESS, epoch="e", dispatched_at="now", cancel=True)
    insert(db, "good", cancel=True)
    relay.expire()
    assert ended(db, "good") == "cancelled"
    assert living(db) == [ENDLESS]


def test_row_that_cannot_be_queued_again_does_not_keep_others_from_their_rescue(
    db: Conn, bench: Bench, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = uuid.uuid4()
    for job_id in (ENDLESS, "good"):
        insert(db, job_id, state="running", worker=gone, token=uuid.uuid4(), claimed_at="2001-01-01")
    monkeypatch.setattr(relay, "_judge_from", 0.0)
    relay.rescue()
    assert db.execute("SELECT state, crashes FROM jobs WHERE id = 'good'").fetchone() == ("queued", 1)


def refuse_in_history(db: Conn, condition: str) -> None:
    """Let Postgres refuse to keep such a row, whatever wants to keep it."""
    db.execute("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$")
    db.execute(f"CREATE TRIGGER refuse BEFORE INSERT ON job_history FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION refuse()")


def test_row_that_cannot_be_set_aside_does_not_keep_others_from_being_sent(db: Conn, bench: Bench, relay: Relay) -> None:
    refuse_in_history(db, "NEW.id = 'bad'")
    insert(db, "bad", 5, available_at="2001-01-01")
    insert(db, "worse", 5, available_at="2001-01-02")
    insert(db, "good")
    relay.send_due()
    assert bench.work() == ["good"]
    assert ended(db, "worse") == "discarded"
    assert living(db) == ["bad"]


def test_row_sent_before_all_time_does_not_keep_the_audit_from_the_others(db: Conn, bench: Bench, relay: Relay) -> None:
    relay.send_due()
    epoch = relay._epoch
    insert(db, "old", epoch=epoch, dispatched_at="-infinity")
    insert(db, "lost", epoch=epoch, dispatched_at="2001-01-01")
    relay.audit()
    relay.send_due()
    assert sorted(bench.work()) == ["lost", "old"]


def test_message_that_cannot_be_set_aside_stays_and_all_else_goes_on(db: Conn, bench: Bench, relay: Relay) -> None:
    refuse_in_history(db, "NEW.id LIKE 'raw-%'")
    foreign = message("foreign", headers={"task": add.name, "id": "foreign"}, properties={})
    bench.redis.lpush("celery", b"nonsense", json.dumps(foreign))
    insert(db, "good")
    relay.round()
    assert sorted(bench.work()) == ["foreign", "good"]
    assert b"nonsense" in bench.redis.lrange("celery", 0, -1)  # type: ignore[operator]


# ---- time


PAST: dict[str, Callable[[], Any]] = {
    "an eta in the past": lambda: add.apply_async((1, 2), eta="2001-01-01T00:00:00Z"),
    "an eta before all time": lambda: add.apply_async((1, 2), eta="0001-01-01T00:00:00Z"),
    "a countdown that is over": lambda: add.apply_async((1, 2), countdown=-5),
}


@pytest.mark.parametrize("case", PAST)
def test_job_whose_time_has_come_already_is_sent_at_once(case: str, bench: Bench, relay: Relay) -> None:
    result = PAST[case]()
    relay.send_due()
    assert bench.ids() == [result.id]
    bench.work()
    assert result.get(timeout=2) == 3


def test_queues_of_a_row_nobody_foresaw_are_named_by_their_lists(db: Conn, bench: Bench, relay: Relay) -> None:
    insert(db, "odd")
    db.execute("UPDATE jobs SET queue = E'a queue\\twith \\u2603'")
    insert(db, "good")
    relay.round()
    assert bench.work() == ["good"]
    assert bench.redis.llen(keys.queue("a queue\twith \u2603", 5)) == 1


def test_row_that_never_expires_runs(db: Conn, bench: Bench, relay: Relay) -> None:
    insert(db, "never over", expires_at="infinity")
    relay.send_due()
    assert bench.work() == ["never over"]
    assert ended(db, "never over") == "succeeded"
