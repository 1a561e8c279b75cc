"""Celery's face: what its users know of calling, canvas, retries, options and hooks works, in every pool."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError, TaskRevokedError

from tests import sample_tasks as t
from tests.acceptance.conftest import House, Log
from tests.harness import eventually
from worker.app import app, enqueue_in, enqueue_many
from worker.db import session, statement
from worker.ledger import manage

#: Seconds a result is waited for on a busy machine.
WAIT = 20


@pytest.fixture(scope="module", params=["prefork", "threads", "solo"], autouse=True)
def pool(house: House, request: pytest.FixtureRequest) -> Iterator[str]:
    """A worker of each pool, for all tests here."""
    worker = house.worker(request.param)
    yield request.param
    assert worker.running, "the worker has outlived all of it"
    worker.kill_tree()


@pytest.fixture
def paused(house: House) -> Iterator[None]:
    """The queue is paused until the test resumes it."""
    with statement() as conn:
        manage.set_paused(conn, "default", True)
    yield
    resume()


def resume() -> None:
    with statement() as conn:
        manage.set_paused(conn, "default", False)


def got(result: Any) -> Any:
    return result.get(timeout=WAIT)


# ---- calling


def test_delay_apply_async_send_task_and_signatures_return_results() -> None:
    results = [
        t.add.delay(1, 2),
        t.add.apply_async((1,), {"y": 2}),
        app.send_task("tests.sample_tasks.add", (1, 2)),
        t.add.s(1, 2).delay(),
        t.add.si(1, 2).apply_async(),
        t.add.s(1).delay(2),
        app.signature("tests.sample_tasks.add", (1, 2)).delay(),
    ]
    assert [got(result) for result in results] == [3] * 7


def test_group_returns_all_results_in_order() -> None:
    assert got(group(t.add.s(i, i) for i in range(20))()) == [2 * i for i in range(20)]


def test_chain_hands_each_result_on() -> None:
    result = (t.add.s(1, 1) | t.add.s(2) | t.add.s(3))()
    assert got(result) == 7
    assert got(result.parent) == 4
    assert got(result.parent.parent) == 2
    assert got(chain(t.add.s(1, 1), t.add.si(10, 10), t.add.s(1)).delay()) == 21


def test_chord_hands_all_results_to_its_body() -> None:
    assert got(chord((t.add.s(i, i) for i in range(12)), t.total.s())()) == sum(2 * i for i in range(12))


def test_chunks_map_and_starmap_work() -> None:
    assert got(t.add.chunks(zip(range(10), range(10), strict=True), 3).apply_async()) == [
        [0, 2, 4],
        [6, 8, 10],
        [12, 14, 16],
        [18],
    ]
    assert got(t.total.map([[1, 2], [3, 4]]).delay()) == [3, 7]
    assert got(t.add.starmap([(1, 2), (3, 4)]).delay()) == [3, 7]
    assert got(t.add.chunks(zip(range(4), range(4), strict=True), 2).group()()) == [[0, 2], [4, 6]]


def test_canvas_may_be_nested() -> None:
    twice = group(t.add.s(1, 1), t.add.s(2, 2)) | t.total.s() | group(t.add.s(1), t.add.s(2)) | t.total.s()
    assert got(twice.delay()) == 15
    chains = group(t.add.s(1, 1) | t.add.s(1), t.add.s(2, 2) | t.add.s(2)) | t.total.s()
    assert got(chains.delay()) == 9
    inner = chord([chord([t.add.s(1, 1), t.add.s(2, 2)], t.total.s()), t.add.s(4, 4)], t.total.s())
    assert got(inner.delay()) == 14
    deep = chain(t.add.s(1, 1), group(chain(t.add.s(1), t.add.s(1)), t.add.s(5)), t.total.s(), t.add.s(100))
    assert got(deep.delay()) == 111


def test_group_of_groups_is_flat() -> None:
    result = chain(t.add.s(0, 1), group(group(t.add.s(1), t.add.s(2)), t.add.s(3))).delay()
    assert sorted(got(result)) == [2, 3, 4]  # in which order is Celery's own affair


def test_empty_groups_and_chords_end_at_once() -> None:
    assert got(group()()) == []
    assert got(chord([], t.total.s())()) == 0


def test_bulk_and_transactional_jobs_run(house: House) -> None:
    ids = enqueue_many(t.add, [(i, 1) for i in range(30)])
    assert [got(app.AsyncResult(job_id)) for job_id in ids] == [i + 1 for i in range(30)]
    with session() as own, own.begin(), enqueue_in(own):
        result = (group(t.add.s(i, i) for i in range(3)) | t.total.s()).delay()
    assert got(result) == 6


def test_row_inserted_by_sql_runs(house: House) -> None:
    message = {"headers": {"task": "tests.sample_tasks.add", "id": "by-sql"}, "properties": {}, "body": "[[20, 1], {}, {}]"}
    house.sql("DELETE FROM job_history WHERE id = 'by-sql'")
    house.cache.delete("celery-task-meta-by-sql")
    house.sql(
        "INSERT INTO jobs (id, task, queue, state, message) VALUES ('by-sql', 'tests.sample_tasks.add', 'default', 'queued', %s)",
        json.dumps(message),
    )
    assert got(app.AsyncResult("by-sql")) == 21


def test_task_without_a_row_runs_as_plain_celery(house: House) -> None:
    result = t.plain.delay(5)
    assert got(result) == 5
    assert house.state(result.id) == "unknown"


def test_pydantic_tasks_take_and_give_models() -> None:
    assert got(t.typed.delay({"number": 1, "note": "two"})) == {"number": 2, "note": "two"}
    assert got(t.typed.delay(t.Order(number=5).model_dump())) == {"number": 6, "note": "none"}


def test_task_knows_its_request() -> None:
    outer = chain(t.about_me.s(), t.echo.s())
    outer.tasks[0].set(headers={"x-test": "here"})
    result = outer.delay()
    me = got(result.parent)
    assert me["id"] == me["root"] == result.parent.id
    assert (me["parent"], me["headers"], me["retries"], me["delivered"]) == (None, "here", 0, True)
    assert me["hostname"].startswith("w")


# ---- links and errors


def test_link_runs_after_success_with_the_result(log: Log) -> None:
    t.add.apply_async((1, 2), link=[t.note_run.si(str(log), "first"), t.note_run.si(str(log), "second")])
    eventually(lambda: sorted(log.lines) == ["first", "second"], WAIT)
    result = t.add.apply_async((1, 2), link=t.add.s(10))
    assert got(result) == 3
    (child,) = eventually(lambda: app.AsyncResult(result.id).children)
    assert got(child) == 13


def test_link_error_runs_after_failure_in_both_of_celerys_ways(log: Log) -> None:
    result = t.fail.apply_async(("boom",), link_error=[t.note_error.s(str(log)), t.note_failed_id.s(str(log))],
                                link=t.note_run.si(str(log), "never"))  # fmt: skip
    with pytest.raises(ValueError, match="boom"):
        got(result)
    eventually(lambda: len(log.lines) == 2, WAIT)
    assert sorted(log.lines) == sorted([result.id, f"{result.id} ValueError('boom')"])


def test_chain_ends_where_a_task_fails_and_its_error_callback_runs(log: Log, house: House) -> None:
    result = chain(t.add.s(1, 1), t.fail.si("middle"), t.note_run.si(str(log), "never")).apply_async(
        link_error=t.note_error.s(str(log))
    )
    with pytest.raises(ValueError, match="middle"):
        got(result.parent)
    with pytest.raises(ValueError, match="middle"):
        got(result)
    eventually(lambda: log.lines, WAIT)
    assert log.lines == [f"{result.parent.id} ValueError('middle')"]
    assert house.sql("SELECT count(*) FROM jobs WHERE id = %s", result.id) == [(0,)]


def test_chord_with_a_failing_part_fails_its_body_and_calls_its_error_callback(log: Log, house: House) -> None:
    body = t.note_run.si(str(log), "body").on_error(t.note_error.s(str(log)))
    result = chord([t.add.s(1, 1), t.fail.s("part"), t.add.s(2, 2)], body).delay()
    with pytest.raises(ChordError, match=r"part"):
        got(app.AsyncResult(result.id))  # the result of the call would raise the part's own error as soon as it sees that
    eventually(lambda: log.lines, WAIT)
    assert len(log.lines) == 1
    assert "ChordError" in log.lines[0]
    assert house.state(result.id) == "failed"


def test_failing_body_of_a_chord_tells_its_own_error(log: Log) -> None:
    result = chord([t.add.s(1, 1), t.add.s(2, 2)], t.fail.si("body").on_error(t.note_error.s(str(log)))).delay()
    with pytest.raises(ValueError, match="body"):
        got(result)
    eventually(lambda: log.lines == [f"{result.id} ValueError('body')"], WAIT)


def test_failure_tells_its_exception_and_traceback() -> None:
    result = t.fail.delay("reason")
    with pytest.raises(ValueError, match="reason"):
        got(result)
    assert "raise ValueError(why)" in result.traceback
    assert result.failed()


def test_children_of_a_task_are_its_results() -> None:
    result = t.spawn.delay(3)
    ids = got(result)
    assert [child.id for child in result.children] == ids
    assert [got(child) for child in result.children] == [0, 2, 4]
    assert sum(1 for _ in result.collect()) == 4


# ---- retries and replacements


def test_retry_goes_on_under_the_same_id_and_counts(house: House) -> None:
    result = t.mark_each_try.delay("try", 2)
    assert got(result) == 2
    assert house.labels(result.id) == ["try 2"], "what the attempts before wrote is rolled back"
    assert house.sql("SELECT attempt, outcome FROM attempts WHERE job_id = %s ORDER BY attempt", result.id) == [
        (1, "retry"),
        (2, "retry"),
    ]
    assert house.sql("SELECT attempt, state FROM job_history WHERE id = %s", result.id) == [(3, "succeeded")]


def test_retries_end_with_the_tasks_own_error(house: House) -> None:
    result = t.retry_for_ever.delay()
    with pytest.raises(ValueError, match="never"):
        got(result)
    assert house.sql("SELECT attempt, state FROM job_history WHERE id = %s", result.id) == [(3, "failed")]


def test_autoretry_and_its_limit_work() -> None:
    assert got(t.autoretry.delay(3)) == 3
    with pytest.raises(KeyError, match="not yet"):
        got(t.autoretry.delay(9))


def test_max_attempts_ends_a_job_that_would_retry_for_ever(house: House) -> None:
    result = t.two_attempts.delay()
    house.wait_for(result.id, "discarded")
    assert house.sql("SELECT attempt FROM job_history WHERE id = %s", result.id) == [(2,)]
    assert result.state == "FAILURE"


def test_retry_within_a_chord_completes_it() -> None:
    assert got(chord([t.autoretry.s(1), t.autoretry.s(2), t.add.s(1, 1)], t.total.s()).delay()) == 5


def test_retry_within_a_chain_completes_it() -> None:
    assert got((t.autoretry.s(2) | t.add.s(1) | t.add.s(1)).delay()) == 4


def test_task_may_replace_itself() -> None:
    assert got(t.become_task.delay(1)) == 101
    assert got(t.become_chain.delay(1)) == 106
    assert got(t.become_group.delay(1)) == [1, 2, 3]
    assert got(t.become_nothing.delay()) == []


def test_replaced_task_stays_part_of_its_canvas() -> None:
    assert got((t.become_task.s(1) | t.add.s(1)).delay()) == 102
    assert got((t.become_chain.s(1) | t.add.s(1)).delay()) == 107
    assert got(chord([t.become_task.s(1), t.become_chain.s(1), t.add.s(1, 1)], t.total.s()).delay()) == 209
    assert got((t.become_group.s(1) | t.total.s()).delay()) == 6


def test_reject_discards_or_gives_back(log: Log, house: House) -> None:
    kept = t.reject.delay(str(log), False)
    house.wait_for(kept.id, "discarded")
    assert log.lines == ["run"]
    log.path.unlink()
    again = t.reject.delay(str(log), True)
    assert got(again) == "taken the second time"
    assert log.lines == ["run", "run"]
    assert (
        house.sql(
            "SELECT error FROM job_history WHERE id LIKE 'raw-%%' AND message ->> 'raw' IS NOT NULL AND error LIKE '%%dict'"
        )
        == []
    )


def test_ignore_ends_a_job_without_a_result(house: House) -> None:
    result = t.ignore.delay()
    house.wait_for(result.id, "discarded")
    assert house.sql("SELECT error FROM job_history WHERE id = %s", result.id) == [("ignored by the task",)]


def test_state_a_task_sets_by_hand_before_ignore_is_kept(house: House) -> None:
    result = t.own_state.delay()
    house.wait_for(result.id, "failed")
    with pytest.raises(ValueError, match="by hand"):
        got(result)


# ---- hooks and signals


@pytest.mark.parametrize(("how", "seen"), [
    ("succeed", ["before_start", "run", "on_success", "after_return SUCCESS"]),
    ("fail", ["before_start", "run", "on_failure", "after_return FAILURE"]),
    ("retry", ["before_start", "run", "on_retry", "before_start", "run", "on_success", "after_return SUCCESS"]),
])  # fmt: skip
def test_hooks_run_in_celerys_order(how: str, seen: list[str], log: Log) -> None:
    t.hooked.delay(str(log), how)
    eventually(lambda: len(log.lines) >= len(seen), WAIT)
    assert log.lines == seen


def test_signals_of_a_task_are_sent(log: Log) -> None:
    t.signalled.delay(str(log))
    eventually(lambda: len(log.lines) >= 3, WAIT)
    assert log.lines == ["prerun", "run", "postrun SUCCESS"]


def test_duplicates_of_a_running_jobs_message_are_dropped(log: Log, house: House, pool: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    result = t.hooked.delay(str(log), "succeed", str(gate))
    eventually(lambda: "run" in log.lines, WAIT)
    for _ in range(3):
        house.deliver_again(result.id)
    if pool != "solo":  # which takes nothing while it runs
        eventually(lambda: house.redis.llen("default\x06\x163") == 0)
        time.sleep(0.2)
    gate.touch()
    assert got(result) == "succeed"
    assert got(t.add.delay(1, 1)) == 2, "whatever was delivered before has been taken"
    assert log.lines == ["before_start", "run", "on_success", "after_return SUCCESS"]
    assert house.sql("SELECT attempt FROM job_history WHERE id = %s", result.id) == [(1,)]


# ---- what a durable job may use


def test_session_commits_with_success_and_rolls_back_with_failure(house: House) -> None:
    good, bad = t.mark.delay("kept"), t.mark_then_fail.delay("lost")
    assert got(good) == "kept"
    with pytest.raises(ValueError, match="lost"):
        got(bad)
    assert house.labels(good.id) == ["kept"]
    assert house.labels(bad.id) == []


def test_once_is_new_until_it_has_committed(house: House) -> None:
    result = t.once_then_retry.delay("invoice")
    assert got(result) is True
    assert house.sql("SELECT name FROM effects WHERE job_id = %s", result.id) == [("invoice",)]


def test_progress_is_seen_in_the_result_and_in_the_row(house: House, tmp_path: Path) -> None:
    result = t.step.delay(4, str(tmp_path / "gate"))
    eventually(lambda: result.state == "PROGRESS", WAIT)
    assert result.info == {"done": 1, "total": 4, "note": "first step"}
    house.cache.flushall()
    assert app.AsyncResult(result.id).info == {"done": 1, "total": 4, "note": "first step"}
    (tmp_path / "gate").touch()
    assert got(result) == 4


def test_running_job_is_seen_as_started(tmp_path: Path) -> None:
    result = t.tracked.delay(str(tmp_path / "gate"))
    eventually(lambda: result.state == "STARTED", WAIT)
    (tmp_path / "gate").touch()
    assert got(result) == "done"


def test_running_job_learns_that_it_is_to_stop(tmp_path: Path) -> None:
    result = t.until_cancelled.delay(str(tmp_path / "gate"))
    eventually((tmp_path / "gate").exists, WAIT)
    app.control.revoke(result.id)
    assert got(result) == "stopped"


def test_result_may_be_ignored(house: House) -> None:
    result = t.silent.delay(5)
    house.wait_for(result.id, "succeeded")
    assert house.sql("SELECT result FROM job_history WHERE id = %s", result.id) == [(None,)]
    assert got(t.add.apply_async((1, 2), ignore_result=True)) is None


def test_result_that_is_no_json_fails_the_job_and_rolls_it_back(house: House) -> None:
    result = t.unwritable.delay()
    with pytest.raises(Exception, match="JSON"):
        got(result)
    assert house.state(result.id) == "failed"
    assert house.labels(result.id) == []


# ---- time, priority, revocation


def test_countdown_and_eta_are_kept() -> None:
    started = time.monotonic()
    later = t.add.apply_async((1, 2), countdown=0.7)
    at = t.add.apply_async((1, 2), eta=datetime.now(UTC) + timedelta(seconds=0.7))
    assert [got(later), got(at)] == [3, 3]
    assert time.monotonic() - started >= 0.7


def test_expired_job_does_not_run(log: Log, house: House, paused: None) -> None:
    result = t.note_run.apply_async((str(log),), expires=0.3)
    house.wait_for(result.id, "expired")
    resume()
    with pytest.raises(TaskRevokedError):
        got(result)
    assert log.lines == []


def test_urgent_jobs_run_first(log: Log, house: House, paused: None, pool: str) -> None:
    if pool == "solo":  # the others run two at a time
        for priority in (9, 5, 0, 9, 3, 0):
            t.note_run.apply_async((str(log), str(priority)), priority=priority)
        eventually(lambda: house.sql("SELECT count(*) FROM jobs WHERE dispatch_epoch IS NULL") == [(6,)])
        resume()
        eventually(lambda: len(log.lines) == 6, WAIT)
        assert log.lines == ["0", "0", "3", "5", "9", "9"]


def test_waiting_job_is_revoked_for_good(log: Log, house: House, paused: None) -> None:
    result = t.note_run.delay(str(log))
    many = [t.note_run.delay(str(log)).id for _ in range(2)]
    result.revoke()
    app.control.revoke(many)
    resume()
    for job_id in (result.id, *many):
        house.wait_for(job_id, "cancelled")
    with pytest.raises(TaskRevokedError):
        got(result)
    assert got(t.add.delay(1, 1)) == 2
    assert log.lines == []


def test_scheduled_job_is_revoked_for_good(house: House) -> None:
    result = t.add.apply_async((1, 2), countdown=60)
    result.revoke()
    assert house.state(result.id) == "cancelled"
    assert result.state == "REVOKED"


# ---- what must not hurt


def test_unknown_task_is_set_aside_and_its_chord_told(house: House) -> None:
    result = app.send_task("tests.no_such_task", (1,))
    house.wait_for(result.id, "discarded")
    assert house.sql("SELECT error FROM job_history WHERE id = %s", result.id) == [("unknown task 'tests.no_such_task'",)]
    with pytest.raises(Exception, match="no_such_task"):
        got(result)
    with pytest.raises(ChordError, match="no_such_task"):
        got(app.AsyncResult(chord([t.add.s(1, 1), app.signature("tests.no_such_task")], t.total.s()).delay().id))


def test_wrong_arguments_fail_the_job_alone() -> None:
    with pytest.raises(TypeError, match="missing 1 required"):
        got(app.send_task("tests.sample_tasks.add", (1,)))


def test_unreadable_messages_on_the_queue_hold_nobody_up(house: House) -> None:
    stray = {
        "headers": {"holdfast": {"r": 0}, "task": "tests.sample_tasks.add", "id": "stray"},
        "properties": {"delivery_tag": "x", "delivery_info": {"exchange": "", "routing_key": "default"}},
        "body": "{", "content-type": "application/json", "content-encoding": "utf-8",
    }  # fmt: skip
    pickled = {**stray, "body": "gA==", "content-type": "application/x-python-serialize", "content-encoding": "binary"}
    marked = {**stray, "body": "[[1, 2], {}, {}]", "headers": {**stray["headers"], "holdfast": 5}}  # type: ignore[dict-item]
    whole = [json.dumps(message) for message in (stray, pickled, marked, {**stray, "properties": {}})]
    for raw in (b"\xff\xfe", b"[" * 100_000, *whole):
        house.redis.lpush("default", raw)
    assert [got(t.add.delay(i, i)) for i in range(4)] == [0, 2, 4, 6]


def test_job_whose_message_no_worker_can_read_is_set_aside(house: House, pool: str) -> None:
    job_id, epoch = f"unreadable-{pool}", house.redis.get("holdfast:epoch").decode()  # type: ignore[union-attr]
    message = {"headers": {"task": "tests.sample_tasks.add", "id": job_id}, "properties": {}, "body": "{"}
    house.sql(
        "INSERT INTO jobs (id, task, queue, state, message, dispatch_epoch, dispatched_at) "
        "VALUES (%s, 'tests.sample_tasks.add', 'default', 'queued', %s, %s, now())",
        job_id,
        json.dumps(message),
        epoch,
    )
    house.deliver_again(job_id)
    assert house.wait_for(job_id, "discarded") == "discarded"
    assert got(t.add.delay(1, 1)) == 2


STRANGE: dict[str, Any] = {"a text": "60", "one number": [60], "words": ["soon", None], "an object": {"hard": 60}}


@pytest.mark.parametrize("case", STRANGE)
def test_strange_timelimit_of_a_message_ends_no_worker(case: str, house: House, pool: str) -> None:
    foreign, ours = f"foreign {case} {pool}", f"ours {case} {pool}"
    headers = {"task": "tests.sample_tasks.add", "timelimit": STRANGE[case]}
    properties = {"delivery_tag": "x", "delivery_info": {"exchange": "", "routing_key": "default"}}
    body = {"body": "[[1, 2], {}, {}]", "content-type": "application/json", "content-encoding": "utf-8"}
    for queue in ("celery", "default"):
        house.redis.lpush(queue, json.dumps({"headers": {**headers, "id": foreign}, "properties": properties, **body}))
    # One that says it is ours, as a row might have been before its message was looked at.
    house.sql("INSERT INTO jobs (id, task, queue, state, message, dispatch_epoch, dispatched_at) "
              "VALUES (%s, 'tests.sample_tasks.add', 'default', 'queued', %s, 'e', now())",
              ours, json.dumps({"headers": {**headers, "id": ours}, "properties": {}, **body}))  # fmt: skip
    house.deliver_again(ours)
    assert house.wait_for(ours, "discarded") == "discarded"
    aside = "SELECT error FROM job_history WHERE message ->> 'raw' IS NOT NULL AND error LIKE %s"
    eventually(lambda: house.sql(aside, "%timelimit is not [hard, soft] in seconds%"), WAIT)
    eventually(lambda: not house.redis.llen("celery"), WAIT)
    assert got(t.add.delay(1, 1)) == 2


def test_every_job_here_has_ended(house: House, pool: str) -> None:
    eventually(lambda: house.sql("SELECT id, task, state, error FROM jobs") == [], WAIT)
    assert house.sql("SELECT group_id FROM chords WHERE done_at IS NULL AND size IS NOT NULL") == []
