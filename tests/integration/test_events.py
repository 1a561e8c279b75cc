"""Events: one for each change of a job's state, in its transaction; none skipped by a reader, none lost to the stream."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests.harness import ROOT, eventually
from tests.integration.conftest import Bench
from tests.integration.test_cli import Said, holdfast  # noqa: F401 - a fixture
from tests.sample_tasks import add, fail
from worker import faults
from worker.engine.forwarder import Forwarder
from worker.errors import InvalidPosition
from worker.ledger import events, history, manage
from worker.ledger.events import Event, Position, events_after, events_since
from worker.ledger.news import News
from worker.store import keys
from worker.streams import Group, Stream

Conn = psycopg.Connection[Any]

_WRITE = "INSERT INTO job_events (job_id, task, queue, state, attempt) VALUES (%s, 't', 'q', 'queued', 0)"


def send(caller: str | None = "shop", **options: Any) -> str:
    """Send a job and return its id."""
    return str(add.apply_async((1, 2), caller=caller, **options).id)


def states(db: Conn, job_id: str) -> list[tuple[str, int]]:
    return [(event.state, event.attempt) for event in events_after(db, job_id=job_id)]


def read_all(db: Conn, position: Position, limit: int = 500) -> tuple[list[Event], Position]:
    found: list[Event] = []
    while page := events_since(db, position, limit=limit):
        found += [event for event, _ in page]
        position = page[-1][1]
    return found, position


# ---- what is written


def test_every_change_of_state_is_an_event(db: Conn, bench: Bench) -> None:
    job_id = send()
    bench.work()
    assert states(db, job_id) == [("queued", 0), ("running", 1), ("succeeded", 1)]
    first = events_after(db, job_id=job_id)[0]
    assert (first.task, first.queue, first.caller) == (add.name, "default", "shop")
    assert [event.state for event in events_after(db, job_id=job_id, after_id=first.id)] == ["running", "succeeded"]


def test_failure_is_told_with_its_cause(db: Conn, bench: Bench) -> None:
    job_id = fail.apply_async(("told",), caller="shop").id
    bench.work()
    last = events_after(db, job_id=job_id)[-1]
    assert last.state == "failed"
    assert "told" in (last.detail or "")


def test_wait_cancellation_and_replay_are_events(db: Conn, bench: Bench) -> None:
    from worker.app import app

    job_id = send(countdown=3600, idempotency_key="k")
    manage.retry_now(db, job_id)
    assert app.control.cancel(job_id)
    manage.replay(db, job_id)
    assert [state for state, _ in states(db, job_id)] == ["scheduled", "queued", "cancelled", "queued"]
    assert {event.key for event in events_after(db, job_id=job_id)} == {"k"}


def test_event_is_part_of_the_transaction_it_tells_of(db: Conn) -> None:
    from worker.app import enqueue_in
    from worker.db import session

    with session() as own, own.begin() as transaction:
        with enqueue_in(own):
            job_id = send()
        assert states(db, job_id) == []
        transaction.rollback()
    assert states(db, job_id) == []


def test_level_says_of_which_jobs_events_are_written(db: Conn, bench: Bench) -> None:
    assert events.level(db) == "callers"
    counts = {}
    for level in ("callers", "all", "off"):
        events.set_level(db, level)
        assert events.level(db) == level
        ids = send(), send(caller=None)
        bench.work()
        counts[level] = [len(states(db, job_id)) for job_id in ids]
    assert counts == {"callers": [3, 0], "all": [3, 3], "off": [0, 0]}
    events.set_level(db, "callers")
    with pytest.raises(ValueError, match="'some' is not a level of events; levels are off, callers, all"):
        events.set_level(db, "some")


def test_partition_made_later_tells_as_the_level_says(db: Conn) -> None:
    events.set_level(db, "off")
    db.execute("CREATE TABLE job_history_20400101 (LIKE job_history INCLUDING ALL)")
    db.execute("ALTER TABLE job_history ATTACH PARTITION job_history_20400101 FOR VALUES FROM ('2040-01-01') TO ('2040-01-02')")
    columns = "(id, task, queue, state, message, caller, finished_at)"
    ended = f"INSERT INTO job_history {columns} VALUES (%s, 't', 'q', 'failed', '{{}}', 'me', %s)"
    db.execute(ended, ("unheard", "2040-01-01 12:00Z"))
    events.set_level(db, "callers")
    db.execute(ended, ("heard", "2040-01-01 13:00Z"))
    assert db.execute("SELECT count(*) FROM job_history_20400101").fetchone() == (2,)
    assert db.execute("SELECT job_id, state FROM job_events").fetchall() == [("heard", "failed")]


def test_events_are_pruned_by_age(db: Conn) -> None:
    db.execute(_WRITE, ("old",))
    db.execute("UPDATE job_events SET at = at - interval '8 days'")
    db.execute(_WRITE, ("new",))
    history.keep_up(db)
    assert [row[0] for row in db.execute("SELECT job_id FROM job_events").fetchall()] == ["new"]


# ---- who reads


def test_reader_skips_nothing_that_commits_late(db: Conn, env: dict[str, str]) -> None:
    """A transaction writes first and commits last; what others wrote and committed meanwhile is not held up by it."""
    with psycopg.connect(env["DATABASE_URL"]) as late:
        late.execute(_WRITE, ("late",))
        db.execute(_WRITE, ("early",))
        found, position = read_all(db, events.beginning())
        assert [event.job_id for event in found] == ["early"]
        db.execute(_WRITE, ("next",))
        found, position = read_all(db, position)
        assert [event.job_id for event in found] == ["next"]
        late.commit()
    found, position = read_all(db, Position.parse(str(position)))
    assert [event.job_id for event in found] == ["late"]
    assert read_all(db, position)[0] == []


def test_readers_beside_many_writers_see_each_event_once(db: Conn, env: dict[str, str]) -> None:
    """Writers commit and roll back in any order; the reader goes on page by page from positions it wrote down as text."""
    over = threading.Event()
    kept: set[str] = set()

    def write(number: int) -> None:
        with psycopg.connect(env["DATABASE_URL"]) as conn:
            for turn in range(25):
                names = [f"{number}-{turn}-{n}" for n in range(7)]
                for name in names:
                    conn.execute(_WRITE, (name,))
                    time.sleep(0.0005 * (number % 3))
                if turn % 5 == 4:
                    conn.rollback()
                else:
                    conn.commit()
                    kept.update(names)

    writers = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for writer in writers:
        writer.start()
    seen: list[str] = []
    position = str(events.beginning())
    while True:
        ended = not any(writer.is_alive() for writer in writers)
        page = events_since(db, Position.parse(position), limit=5)
        seen += [event.job_id for event, _ in page]
        if page:
            # Not always the last of the page: a reader may have got half through.
            cut = page if len(seen) % 3 else page[:3]
            seen = seen[: len(seen) - len(page) + len(cut)]
            position = str(cut[-1][1])
        elif ended:
            break
    over.set()
    assert len(seen) == len(set(seen))
    assert set(seen) == kept


def test_reader_begins_at_a_moment(db: Conn) -> None:
    db.execute(_WRITE, ("before",))
    time.sleep(0.05)
    (moment,) = db.execute("SELECT clock_timestamp()").fetchone() or (None,)
    db.execute(_WRITE, ("after",))
    assert moment is not None
    assert [event.job_id for event in read_all(db, events.position_at(db, moment))[0]] == ["after"]
    assert read_all(db, events.position_at(db, datetime.now(UTC) + timedelta(days=1)))[0] == []


@pytest.mark.parametrize("text", ["", "soon", "1:2", "1:2:/3", "1:2:/1:3:/a/1"])
def test_position_that_is_none_is_named(text: str) -> None:
    with pytest.raises(InvalidPosition, match="is not a position in the events"):
        Position.parse(text)


def test_position_of_another_database_is_refused(db: Conn) -> None:
    with pytest.raises(InvalidPosition, match="lies ahead of this database"):
        events.check_position(db, Position("999999999:999999999:"))


# ---- the stream


def test_forwarder_carries_each_event_and_nudges(db: Conn, redis: Redis, bench: Bench) -> None:
    news = News()
    seen = eventually(lambda: news.wait(0, 0.1))
    job_id = send(idempotency_key="k")
    bench.work()
    forwarder = Forwarder()
    assert forwarder.round() is False
    entries = Stream(keys.events()).range()
    assert [entry.text("state") for entry in entries] == ["queued", "running", "succeeded"]
    assert {(entry.text("job_id"), entry.text("caller"), entry.text("key")) for entry in entries} == {(job_id, "shop", "k")}
    assert [int(entry.fields["id"]) for entry in entries] == [event.id for event in events_after(db, job_id=job_id)]
    start = time.monotonic()
    assert news.wait(seen) > seen
    assert time.monotonic() - start < 1.5, "by the word, not by a look from time to time"
    news.close()
    forwarder.round()
    assert len(Stream(keys.events())) == 3, "once"


def test_forwarder_that_dies_between_carrying_and_remembering_repeats_with_the_same_ids(
    db: Conn, redis: Redis, fault: Callable[[str], None]
) -> None:
    send()
    fault("before-remember:raise")
    with pytest.raises(faults.InjectedFault):
        Forwarder().round()
    fault("")
    Forwarder().round()
    told = [entry.text("id") for entry in Stream(keys.events()).range()]
    assert len(told) == 2
    assert len(set(told)) == 1


def test_flush_loses_no_event_for_who_reads_the_record(db: Conn, redis: Redis) -> None:
    send()
    Forwarder().round()
    redis.flushall()
    send()
    forwarder = Forwarder()
    forwarder.round()
    assert len(Stream(keys.events())) == 1, "the stream goes on with what is new"
    assert len(read_all(db, events.beginning())[0]) == 2


def test_two_forwarders_carry_nothing_twice(db: Conn, redis: Redis) -> None:
    for number in range(600):
        db.execute(_WRITE, (f"job-{number}",))
    threads = [threading.Thread(target=lambda: [Forwarder().round() for _ in range(4)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [entry.text("id") for entry in Stream(keys.events()).scan()]
    assert len(told) == len(set(told)) == 600


def test_event_stream_is_bounded_but_waits_for_its_groups(db: Conn, redis: Redis, conf: Callable[..., None]) -> None:
    conf(events_keep_size=50)
    for number in range(300):
        db.execute(_WRITE, (f"job-{number}",))
    forwarder = Forwarder()
    forwarder.round()
    group = Group(forwarder.stream, "billing", consumer="one")
    group.ensure()
    forwarder._trim_at = 0.0
    forwarder.round()
    assert len(forwarder.stream) == 300, "a group has yet to read them"
    group.ack([entry.id for entry in group.read(limit=300)])
    forwarder._trim_at = 0.0
    forwarder.round()
    assert len(forwarder.stream) == 50


def test_forwarder_begins_anew_in_a_restored_database(db: Conn, redis: Redis) -> None:
    events.remember(db, "stream", Position("999999999:999999999:"))
    forwarder = Forwarder()
    forwarder.round()
    send()
    forwarder.round()
    assert len(forwarder.stream) == 1


# ---- the command


def test_tail_prints_what_was_and_where_it_stands(holdfast: Callable[..., Said], db: Conn, bench: Bench) -> None:  # noqa: F811
    job_id = send()
    bench.work()
    told = holdfast("events", "tail", "--since", "1h", "--no-follow", "--json")
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [line["state"] for line in lines] == ["queued", "running", "succeeded"]
    rest = holdfast("events", "tail", "--from", lines[0]["position"], "--no-follow")
    assert [line.split("  ")[1:] for line in rest.out.splitlines()] == [
        [job_id, add.name, "running (attempt 1)"], [job_id, add.name, "succeeded (attempt 1)"]
    ]  # fmt: skip
    assert holdfast("events", "tail", "--from", "soon").code == 2
    assert holdfast("events", "tail", "--job", "a", "--since", "1h").code == 2
    assert holdfast("events", "level").out == "callers\n"


def test_tail_follows(db: Conn, bench: Bench) -> None:
    job_id = send()
    command = [sys.executable, "-u", "-m", "worker.cli", "events", "tail", "--job", job_id]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            assert "queued" in program.stdout.readline()
            bench.work()
            assert "running" in program.stdout.readline()
            assert "succeeded" in program.stdout.readline()
        finally:
            program.kill()
