"""Beats tick from rows: each tick once, whoever dies; missed ones as each schedule says; edits are seen while they run."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from celery.beat import BeatLazyFunc, ScheduleEntry
from celery.schedules import crontab, schedule, solar
from psycopg.rows import dict_row

from tests.harness import ROOT, Program, eventually
from tests.unit.test_ticks import walk
from worker import faults
from worker.app import defaults
from worker.db import statement
from worker.embedded import Stack
from worker.engine import beat
from worker.engine.application import Holdfast
from worker.errors import InvalidSchedule, LedgerUnavailable, ScheduleNotFound
from worker.ledger import schedules
from worker.ledger.schedules import Spec
from worker.store import keys
from worker.telemetry import OUTAGES

NOON = datetime(2025, 6, 2, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

#: One beat after the other in simulated time: each reads the clock from a file, and dies at a fault drawn by chance. They are
#: forked, because a new program takes a second of a core to start.
BEATS = """
import os, random, sys, time
from datetime import datetime
from pathlib import Path
from worker import faults
from worker.app import defaults
from worker.engine import beat
from worker.engine.application import Holdfast

app = Holdfast("simulated", set_as_current=False)
app.add_defaults(defaults)
clock, chance = Path(sys.argv[1]), random.Random(sys.argv[2])
print("ready", flush=True)
while True:
    fault = f"{chance.choice(['after-insert', 'after-commit'])}:kill:{chance.randint(20, 150)}"
    if not (pid := os.fork()):
        break
    os.waitpid(pid, 0)
    print("died", flush=True)
faults.arm(fault)
while True:
    beat.tick(app, datetime.fromisoformat(clock.read_text()))
    time.sleep(0.002)
"""


@pytest.fixture
def app(env: dict[str, str]) -> Iterator[Holdfast]:
    app = Holdfast("test", set_as_current=False)
    app.add_defaults(defaults)

    assert app.conf.timezone == "UTC"  # configured now, so that what a test sets afterwards holds

    @app.task(name="known", shared=False, max_attempts=4)
    def known(*args: Any, **kwargs: Any) -> None: ...

    beat._troubles.clear()
    yield app
    faults.arm("")


@pytest.fixture
def conn(env: dict[str, str]) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(env["DATABASE_URL"], autocommit=True) as conn:
        yield conn


def add(conn: psycopg.Connection[Any], name: str = "s", *, now: datetime = NOON, **fields: Any) -> dict[str, Any]:
    timing = {} if {"crontab", "every_s"} & set(fields) else {"crontab": "* * * * *"}
    return schedules.add(conn, Spec(**{"name": name, "task": "t", **timing, **fields}), now=now)


def jobs(conn: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    return conn.cursor(row_factory=dict_row).execute("SELECT * FROM jobs ORDER BY created_at, id").fetchall()


def ids(conn: psycopg.Connection[Any]) -> set[str]:
    return {job["id"] for job in jobs(conn)}


def messages(client: Any) -> int:
    return sum(client.llen(key) for key in keys.queue_lists("default"))


def of(name: str, *minutes: int) -> set[str]:
    return {beat.job_id(name, NOON + n * MINUTE) for n in minutes}


# ---- two beats, kills and clocks that jump

PLANS = {
    "berlin": {"crontab": "*/10 * * * *", "timezone": "Europe/Berlin"},
    "berlin night": {"crontab": "*/15 0-4 * * *", "timezone": "Europe/Berlin"},
    "berlin daily": {"crontab": "30 2 * * *", "timezone": "Europe/Berlin"},
    "new york": {"crontab": "*/5 * * * *", "timezone": "America/New_York"},
    "lord howe": {"crontab": "0,20,40 * * * *", "timezone": "Australia/Lord_Howe"},
    "interval": {"every_s": 210.0},
}


@pytest.mark.parametrize("day", ["2025-03-29T14:00", "2025-10-25T14:00"], ids=["forward", "back"])
def test_two_beats_make_each_of_a_thousand_ticks_once_though_they_are_killed(
    day: str, conn: psycopg.Connection[Any], launch: Callable[[Program], Program], tmp_path: Path
) -> None:
    start = datetime.fromisoformat(day).replace(tzinfo=UTC)
    minutes = 27 * 60
    for name, plan in PLANS.items():
        add(conn, name, now=start, catch_up="all", **plan)
    expected = {
        beat.job_id(name, tick)
        for name, plan in PLANS.items() if "crontab" in plan
        for tick in walk(plan["crontab"], plan["timezone"], start, minutes)
    } | {beat.job_id("interval", start + n * timedelta(seconds=210)) for n in range(1, minutes * 60 // 210 + 1)}  # fmt: skip
    assert len(expected) >= 1000

    chance, clock, seen = random.Random(day), tmp_path / "clock", Counter[str]()

    def tell(now: datetime) -> None:
        (tmp_path / "next").write_text(now.isoformat())
        (tmp_path / "next").rename(clock)

    def collect() -> None:
        # The jobs are taken away at once: nothing but the transaction keeps a tick from being made again.
        seen.update(row[0] for row in conn.execute("DELETE FROM jobs RETURNING id").fetchall())

    tell(start)
    beats = [launch(Program("-c", BEATS, str(clock), f"{day} {number}", name="beats", ready="ready")) for number in range(2)]
    for minute in range(0, minutes + 1, 5):
        tell(start + minute * MINUTE)
        collect()
        for program in beats:
            if chance.random() < 0.006:
                for running in program.children():
                    running.kill()
        time.sleep(0.03)

    def done() -> bool:
        collect()
        left = conn.execute("SELECT count(*) FROM schedules WHERE next_tick <= %s", (start + minutes * MINUTE,)).fetchone()
        return left == (0,)

    eventually(done, 30, what="all ticks made")
    time.sleep(0.2)
    collect()
    assert sum(program.log().count("died") for program in beats) >= 3
    assert sorted(expected - set(seen)) == [], "missed"
    assert sorted(set(seen) - expected) == [], "made up"
    assert [job for job, times in seen.items() if times > 1] == [], "double"


def test_a_beat_that_dies_between_job_and_commit_leaves_neither(app: Holdfast, conn: psycopg.Connection[Any]) -> None:
    add(conn)
    faults.arm("after-insert:raise")
    assert beat.tick(app, NOON + MINUTE) == 0
    assert jobs(conn) == []
    assert schedules.get(conn, "s")["next_tick"] == NOON + MINUTE
    assert beat.tick(app, NOON + MINUTE) == 1
    assert ids(conn) == of("s", 1)


def test_a_tick_that_is_run_again_makes_no_second_job(app: Holdfast, conn: psycopg.Connection[Any], redis: Any) -> None:
    add(conn)
    for _ in range(2):
        beat.tick(app, NOON + MINUTE)
        conn.execute("UPDATE schedules SET next_tick = %s", (NOON + MINUTE,))
    conn.execute("SET TimeZone = 'Asia/Kolkata'")
    assert ids(conn) == of("s", 1)
    assert messages(redis) == 1


def test_a_frozen_beat_does_not_keep_its_schedules(
    app: Holdfast, conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(conn)
    monkeypatch.setattr(schedules, "_LET_GO", "SET LOCAL idle_in_transaction_session_timeout = '2s'")
    with statement() as frozen:
        frozen.execute("BEGIN")
        assert schedules.due(frozen, NOON + MINUTE)
        assert beat.tick(app, NOON + MINUTE) == 0
        eventually(lambda: beat.tick(app, NOON + MINUTE) == 1, 7, what="the other beat ticking")


# ---- what a job is made of


def test_a_job_is_sent_as_its_schedule_and_its_task_say(app: Holdfast, conn: psycopg.Connection[Any], redis: Any) -> None:
    options = {"headers": {"tenant": "a"}, "expires": 60, "priority": 2}
    add(conn, task="known", args=[1, "two"], kwargs={"three": 3}, options=options)
    assert beat.tick(app, NOON + MINUTE) == 1
    (job,) = jobs(conn)
    assert (job["task"], job["queue"], job["priority"], job["max_attempts"]) == ("known", "default", 2, 4)
    assert (job["args"], job["kwargs"]) == ("(1, 'two')", "{'three': 3}")
    assert job["expires_at"] - job["created_at"] < timedelta(seconds=61)
    headers = job["message"]["headers"]
    assert (headers["tenant"], headers["beat_schedule"], headers["beat_tick"]) == ("a", "s", "2025-06-02T12:01:00+00:00")
    assert job["dispatch_epoch"] is not None
    assert messages(redis) == 1


def test_firing_runs_a_task_now_and_touches_no_tick(app: Holdfast, conn: psycopg.Connection[Any]) -> None:
    before = add(conn, enabled=False, args=[7])
    first, second = beat.fire(app, "s"), beat.fire(app, "s")
    assert ids(conn) == {first, second}
    assert first != second
    assert schedules.get(conn, "s") == before
    with pytest.raises(ScheduleNotFound, match="there is no schedule 'other'"):
        beat.fire(app, "other")


# ---- catching up


def test_all_makes_every_missed_tick_a_bounded_number_at_a_time(
    app: Holdfast, conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "MOST_TICKS", 40)
    add(conn, catch_up="all")
    late = NOON + 100 * MINUTE
    assert [beat.tick(app, late) for _ in range(4)] == [40, 40, 20, 0]
    assert ids(conn) == of("s", *range(1, 101))
    row = schedules.get(conn, "s")
    assert (row["last_tick"], row["next_tick"]) == (late, late + MINUTE)


def test_once_makes_the_latest_missed_tick(app: Holdfast, conn: psycopg.Connection[Any]) -> None:
    add(conn, catch_up="once")
    assert beat.tick(app, NOON + 100.5 * MINUTE) == 1
    assert ids(conn) == of("s", 100)
    assert schedules.get(conn, "s")["next_tick"] == NOON + 101 * MINUTE
    add(conn, "i", every_s=7, catch_up="once")
    assert beat.tick(app, NOON + timedelta(seconds=7 * 10**6 + 3)) == 2
    assert beat.job_id("i", NOON + timedelta(seconds=7 * 10**6)) in ids(conn)


def test_skip_makes_a_tick_that_is_hardly_late_and_no_other(app: Holdfast, conn: psycopg.Connection[Any]) -> None:
    add(conn, crontab="0 * * * *", catch_up="skip")
    hour = timedelta(hours=1)
    assert beat.tick(app, NOON + hour + timedelta(seconds=9)) == 1
    assert beat.tick(app, NOON + 2 * hour + timedelta(seconds=11)) == 0
    assert beat.tick(app, NOON + 5 * hour + timedelta(seconds=1)) == 1
    assert ids(conn) == {beat.job_id("s", NOON + hour), beat.job_id("s", NOON + 5 * hour)}
    row = schedules.get(conn, "s")
    assert (row["last_tick"], row["next_tick"]) == (NOON + 5 * hour, NOON + 6 * hour)


# ---- people's changes


def test_an_edit_holds_from_the_next_tick(app: Holdfast, conn: psycopg.Connection[Any]) -> None:
    add(conn, catch_up="all")
    beat.tick(app, NOON + MINUTE)
    row = schedules.edit(conn, "s", crontab="*/5 * * * *", args=["new"], now=NOON + 1.5 * MINUTE)
    assert (row["next_tick"], row["args"]) == (NOON + 5 * MINUTE, ["new"])
    row = schedules.edit(conn, "s", every_s=90, now=NOON + 2 * MINUTE)
    assert (row["crontab"], row["every_s"], row["next_tick"]) == (None, 90.0, NOON + 3.5 * MINUTE)
    row = schedules.edit(conn, "s", crontab="0 8 * * *", timezone="Asia/Kolkata", now=NOON + 2 * MINUTE)
    assert (row["every_s"], row["next_tick"]) == (None, datetime(2025, 6, 3, 8, tzinfo=ZoneInfo("Asia/Kolkata")))


def test_a_tick_that_is_due_survives_an_edit_of_the_timing(app: Holdfast, conn: psycopg.Connection[Any]) -> None:
    add(conn, crontab="0 13 * * *", catch_up="all")
    schedules.edit(conn, "s", crontab="* * * * *", now=NOON + 70 * MINUTE)
    assert beat.tick(app, NOON + 72 * MINUTE) == 3
    assert ids(conn) == of("s", 60, 71, 72)


def test_a_pause_is_not_made_up_for(app: Holdfast, conn: psycopg.Connection[Any]) -> None:
    add(conn, catch_up="all")
    assert schedules.set_enabled(conn, "s", False, now=NOON)["enabled"] is False
    assert beat.tick(app, NOON + 10 * MINUTE) == 0
    schedules.set_enabled(conn, "s", True, now=NOON + 10.5 * MINUTE)
    assert beat.tick(app, NOON + 12 * MINUTE) == 2
    assert ids(conn) == of("s", 11, 12)


def test_schedules_are_listed_and_removed(conn: psycopg.Connection[Any]) -> None:
    conn.execute("SET TimeZone = 'Asia/Kolkata'")
    for name in ("b", "a"):
        add(conn, name)
    assert [row["name"] for row in schedules.list_schedules(conn)] == ["a", "b"]
    assert str(schedules.list_schedules(conn)[0]["next_tick"]) == "2025-06-02 12:01:00+00:00"
    schedules.remove(conn, "a")
    with pytest.raises(ScheduleNotFound):
        schedules.remove(conn, "a")
    with pytest.raises(ScheduleNotFound):
        schedules.edit(conn, "a", task="u")
    assert [row["name"] for row in schedules.list_schedules(conn)] == ["b"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"crontab": "bad cron"}, "crontab 'bad cron' has 2 fields, not five"),
        ({"crontab": "0 0 31 2 *"}, "never happens"),
        ({"crontab": "* * * * *", "every_s": 5}, "one of the two"),
        ({"crontab": None}, "one of the two"),
        ({"crontab": 5}, "crontab: 5 is not five fields"),
        ({"every_s": 0}, "every_s: 0 is not a number of seconds from 0.1"),
        ({"every_s": float("nan")}, "every_s: nan is not"),
        ({"every_s": True}, "every_s: True is not"),
        ({"every_s": "60"}, "every_s: '60' is not"),
        ({"timezone": "Mars/Base"}, "timezone 'Mars/Base' is not known"),
        ({"catch_up": "some"}, "catch_up: 'some' is not skip, once or all"),
        ({"name": ""}, "name: '' is not a line"),
        ({"name": "a\0b"}, "name: "),
        ({"name": "\ud800"}, "name: "),
        ({"task": None}, "task: None is not"),
        ({"args": "ab"}, "args: 'ab' is not a list"),
        ({"args": [{1, 2}]}, "args: cannot be written as JSON"),
        ({"args": [float("inf")]}, "args: cannot be written as JSON"),
        ({"args": ["\0"]}, "U+0000"),
        ({"args": ["\ud800"]}, "args: cannot be written as JSON"),
        ({"kwargs": [1]}, "kwargs: [1] is not an object"),
        ({"options": {"task_id": "1"}}, "options: 'task_id' cannot be set"),
        ({"anchor": datetime(2025, 1, 1)}, "anchor: "),
    ],
)
def test_a_bad_schedule_gets_one_line_and_changes_nothing(
    conn: psycopg.Connection[Any], fields: dict[str, Any], words: str
) -> None:
    before = add(conn)
    with pytest.raises(InvalidSchedule) as caught:
        add(conn, **{"name": "new", **fields})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    if "name" not in fields and set(fields) - {"crontab", "every_s"}:
        with pytest.raises(InvalidSchedule, match=next(iter(fields))):
            schedules.edit(conn, "s", **fields)
    assert schedules.list_schedules(conn) == [before]


def test_a_name_that_is_taken_and_a_field_that_is_none_are_refused(conn: psycopg.Connection[Any]) -> None:
    before = add(conn)
    with pytest.raises(InvalidSchedule, match="a schedule 's' already"):
        add(conn, task="u")
    with pytest.raises(InvalidSchedule, match="'every' is not a field of a schedule: task, args"):
        schedules.edit(conn, "s", every=5)
    assert schedules.list_schedules(conn) == [before]


def test_a_schedule_that_cannot_be_sent_holds_up_no_other_and_loses_nothing(app: Holdfast, conn: psycopg.Connection[Any]) -> None:
    add(conn, "a", options={"queue": "nowhere"}, catch_up="all")
    add(conn, "b", catch_up="all")
    add(conn, "c", catch_up="all")
    conn.execute("UPDATE schedules SET timezone = 'Mars/Base' WHERE name = 'b'")
    assert beat.tick(app, NOON + MINUTE) == 1
    assert ids(conn) == of("c", 1)
    schedules.edit(conn, "a", options={}, now=NOON + MINUTE)
    conn.execute("UPDATE schedules SET timezone = 'UTC' WHERE name = 'b'")
    assert beat.tick(app, NOON + 3 * MINUTE) == 8
    assert ids(conn) == of("a", 1, 2, 3) | of("b", 1, 2, 3) | of("c", 1, 2, 3)


def test_a_hundred_schedules_due_at_once_are_all_run(app: Holdfast, conn: psycopg.Connection[Any]) -> None:
    for n in range(120):
        add(conn, f"s{n:03}")
    assert beat.tick(app, NOON + MINUTE) == 120
    assert beat.tick(app, NOON + MINUTE) == 0


# ---- what the code declares


class ZonedCrontab(crontab):  # type: ignore[misc]
    """As django-celery-beat's: it brings its own zone."""

    def __init__(self, *args: Any, tz: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tz = tz


def own_rows(conn: psycopg.Connection[Any]) -> dict[str, dict[str, Any]]:
    """The schedules by name, but for those that Holdfast always declares."""
    return {row["name"]: row for row in schedules.list_schedules(conn) if row["name"] not in beat.MAINTENANCE}


def test_entries_of_the_code_become_rows(app: Holdfast, conn: psycopg.Connection[Any]) -> None:
    app.conf.beat_schedule = {
        "cron": {"task": "t", "schedule": crontab(minute="*/5", hour={8, 9}, day_of_week="mon-fri"), "args": (1, (2,))},
        "zoned": {"task": "t", "schedule": ZonedCrontab(minute=0, hour=3, tz=ZoneInfo("Europe/Berlin")), "catch_up": "all"},
        "said": {"task": "t", "schedule": crontab(minute=0), "timezone": "Asia/Kolkata", "enabled": False},
        "number": {"task": "t", "schedule": 30, "kwargs": {"at": NOON}, "options": {"queue": "default"}},
        "delta": {"task": "t", "schedule": timedelta(hours=2)},
        "relative": {"task": "t", "schedule": schedule(3600, relative=True)},
        "entry": ScheduleEntry("entry", "t", schedule=schedule(5.0), app=app),
    }
    app.add_periodic_task(60.0, app.signature("t", (9,)), name="added")
    beat.declare(app)
    rows = own_rows(conn)
    assert {name: (row["crontab"], row["every_s"], row["timezone"]) for name, row in rows.items()} == {
        "cron": ("*/5 8,9 * * mon-fri", None, "UTC"), "zoned": ("0 3 * * *", None, "Europe/Berlin"),
        "said": ("0 * * * *", None, "Asia/Kolkata"), "number": (None, 30.0, "UTC"), "delta": (None, 7200.0, "UTC"),
        "relative": (None, 3600.0, "UTC"), "entry": (None, 5.0, "UTC"), "added": (None, 60.0, "UTC"),
    }  # fmt: skip
    assert {row["source"] for row in rows.values()} == {"code"}
    assert (rows["cron"]["args"], rows["added"]["args"], rows["zoned"]["catch_up"]) == ([1, [2]], [9], "all")
    assert rows["said"]["enabled"] is False
    assert rows["relative"]["next_tick"].minute == 0
    conn.execute("UPDATE schedules SET next_tick = anchor WHERE name = 'number'")
    assert beat.tick(app, schedules.clock(conn)) == 1
    assert NOON.isoformat() in jobs(conn)[0]["message"]["body"]


def test_a_restart_keeps_where_schedules_stand_and_what_operators_chose(app: Holdfast, conn: psycopg.Connection[Any]) -> None:
    def declare(**entries: Any) -> None:
        app.conf.beat_schedule = {name: {"task": "t", "schedule": plan} for name, plan in entries.items()}
        beat.declare(app)

    declare(kept=60, paused=60, changed=60, gone=60)
    schedules.set_enabled(conn, "paused", False)
    conn.execute("UPDATE schedules SET next_tick = next_tick - interval '1 hour' WHERE name = 'kept'")
    add(conn, "people")
    before = own_rows(conn)
    declare(kept=60, paused=60, changed=90)
    after = own_rows(conn)
    assert sorted(after) == ["changed", "kept", "paused", "people"]
    assert after["kept"]["next_tick"] == before["kept"]["next_tick"]
    assert after["kept"]["anchor"] == before["kept"]["anchor"]
    assert after["paused"]["enabled"] is False
    assert after["changed"]["every_s"] == 90
    assert after["people"] == before["people"]
    declare(people=5)
    assert schedules.get(conn, "people") == before["people"]


def test_what_the_code_declares_is_only_paused_at_run_time(app: Holdfast, conn: psycopg.Connection[Any]) -> None:
    app.conf.beat_schedule = {"s": {"task": "t", "schedule": 60}}
    beat.declare(app)
    for change in (lambda: schedules.edit(conn, "s", every_s=5), lambda: schedules.remove(conn, "s")):
        with pytest.raises(InvalidSchedule, match="declared in code"):
            change()
    assert schedules.set_enabled(conn, "s", False)["enabled"] is False


class Odd(schedule):  # type: ignore[misc]
    def is_due(self, last_run_at: datetime) -> Any: ...


def sunrise() -> solar:
    """Return a solar schedule without `ephem`, which making one wants."""
    made = solar.__new__(solar)
    made.__dict__.update(nowfun=None, event="sunrise", lat=52.5, lon=13.4)
    return made


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"task": "t", "schedule": sunrise()}, "is not a crontab, a timedelta or a number"),
        ({"task": "t", "schedule": Odd(5)}, "is not a crontab"),
        ({"task": "t", "schedule": "0 8 * * *"}, "is not a crontab"),
        ({"task": "t"}, "None is not a crontab"),
        ({"task": "t", "schedule": 0}, "every_s: 0 is not"),
        ({"task": "t", "schedule": crontab(nowfun=datetime.now)}, "nowfun"),
        ({"task": "t", "schedule": crontab(), "timezone": "Mars/Base"}, "timezone 'Mars/Base'"),
        ({"task": "t", "schedule": 5, "arg": []}, "'arg' is not one of task, schedule"),
        ({"task": "t", "schedule": 5, "args": (BeatLazyFunc(time.time),)}, "BeatLazyFunc"),
        ({"task": "t", "schedule": 5, "kwargs": {"x": object()}}, "kwargs: cannot be written as JSON"),
        ({"schedule": 5}, "task: None is not"),
        (7, "it is int, not a dict"),
    ],
)
def test_a_wrong_entry_of_the_code_is_named_when_beat_starts(
    app: Holdfast, capsys: pytest.CaptureFixture[str], entry: Any, words: str
) -> None:
    app.conf.beat_schedule = {"nightly": entry}
    with pytest.raises(SystemExit) as caught:
        beat.LedgerScheduler(app)
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("holdfast: beat_schedule entry 'nightly': ")
    assert words in line


# ---- the process


def test_the_scheduler_sees_edits_within_a_second(app: Holdfast, conn: psycopg.Connection[Any]) -> None:
    app.conf.beat_schedule = {"rare": {"task": "t", "schedule": 3600}}
    scheduler = beat.LedgerScheduler(app, max_interval=300)
    assert 0 < scheduler.tick() <= 1
    schedules.add(conn, Spec("often", "t", every_s=0.3))
    scheduler.tick()
    wait = scheduler.tick()
    assert 0 <= wait <= 0.3
    time.sleep(wait + 0.01)
    scheduler.tick()
    assert len(jobs(conn)) >= 1
    assert schedules.get(conn, "rare")["source"] == "code"


def test_the_scheduler_goes_on_at_once_when_it_has_more_to_make_up_for(
    app: Holdfast, conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "MOST_TICKS", 3)
    add(conn, crontab="0 0 1 * *", catch_up="all", now=schedules.clock(conn) - timedelta(days=150))
    scheduler = beat.LedgerScheduler(app)
    assert scheduler.tick() == 0
    assert scheduler.tick() > 0
    assert len(jobs(conn)) in (4, 5)


def test_the_scheduler_outlives_postgres(app: Holdfast, conn: psycopg.Connection[Any], stack: Stack) -> None:
    add(conn, every_s=0.2, now=schedules.clock(conn))
    app.conf.beat_schedule = {"late": {"task": "t", "schedule": 3600}}
    scheduler = beat.LedgerScheduler(app)
    waits = OUTAGES.labels("beat", "waits for postgres")
    before = waits._value.get()
    stack.postgres.stop()
    assert [scheduler.tick(), scheduler.tick()] == [1, 1]
    assert waits._value.get() == before + 2
    with pytest.raises(LedgerUnavailable):
        beat.tick(app)
    stack.postgres.start()
    eventually(lambda: scheduler.tick() < 1, 10)
    with statement() as again:
        eventually(lambda: scheduler.tick() < 1 and jobs(again), 10)
        assert schedules.get(again, "late")["source"] == "code"


def test_ticks_are_made_while_redis_is_away(app: Holdfast, conn: psycopg.Connection[Any], stack: Stack) -> None:
    add(conn, catch_up="all")
    stack.redis.kill()
    began = time.monotonic()
    assert beat.tick(app, NOON + 300 * MINUTE) == 300
    assert time.monotonic() - began < 5
    assert {job["dispatch_epoch"] for job in jobs(conn)} == {None}


def test_stock_celery_beat_runs_on_rows_and_leaves_no_file(
    app: Holdfast, conn: psycopg.Connection[Any], launch: Callable[[Program], Program]
) -> None:
    def made() -> list[str]:
        return [job["id"] for job in jobs(conn) if job["task"] == "t"]

    before = set(ROOT.glob("*celerybeat*"))
    program = launch(Program("-m", "celery", "-A", "worker.app", "beat", "-l", "INFO", name="beat", ready="beat: Starting"))
    schedules.add(conn, Spec("s", "t", every_s=0.5))
    eventually(lambda: len(made()) >= 3, 10)
    schedules.set_enabled(conn, "s", False)
    time.sleep(0.2)
    paused = made()
    time.sleep(1)
    assert made() == paused
    assert program.stop() == 0
    assert set(ROOT.glob("*celerybeat*")) == before
