"""Results: Redis first, Postgres behind it; a flush or an outage of either Redis loses none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from celery import group
from celery.exceptions import TaskRevokedError, TimeoutError
from celery.result import GroupResult
from redis import Redis

from tests.harness import eventually
from tests.integration.conftest import Bench
from tests.sample_tasks import add, echo, fail, noop, retry_for_ever, silent, spawn, total
from worker.app import app
from worker.embedded import Stack
from worker.engine.relay import Relay

Conn = psycopg.Connection[Any]


@pytest.fixture
def lose(redis: Redis, cache: Redis) -> Callable[[], None]:
    """Empty both Redis servers."""

    def flush() -> None:
        redis.flushall()
        cache.flushall()

    return flush


def test_result_is_read_from_redis_and_has_a_life(bench: Bench, cache: Redis) -> None:
    result = add.delay(1, 2)
    bench.work()
    assert 86_000 < cache.ttl(f"celery-task-meta-{result.id}") <= 86_400  # type: ignore[operator]
    assert result.get(timeout=2) == 3


def test_life_of_a_result_is_a_setting_also_when_it_is_filled_in(
    bench: Bench, cache: Redis, conf: Callable[..., None], lose: Callable[[], None]
) -> None:
    conf(result_ttl_s=100)
    result = add.delay(1, 2)
    bench.work()
    assert 95 < cache.ttl(f"celery-task-meta-{result.id}") <= 100  # type: ignore[operator]
    lose()
    assert result.get(timeout=2) == 3
    assert 95 < cache.ttl(f"celery-task-meta-{result.id}") <= 100  # type: ignore[operator]


def test_success_is_the_same_after_a_flush(bench: Bench, lose: Callable[[], None]) -> None:
    result = echo.delay("två", [1, None], key={"a": 1.5})
    bench.work()
    before = app.AsyncResult(result.id)._get_task_meta()
    lose()
    after = app.AsyncResult(result.id)._get_task_meta()
    assert after["status"] == before["status"] == "SUCCESS"
    assert after["result"] == before["result"] == [["två", [1, None]], {"key": {"a": 1.5}}]
    assert (after["task_id"], after["children"], after["traceback"]) == (
        before["task_id"],
        before["children"],
        before["traceback"],
    )
    assert after["date_done"] is not None


def test_none_is_a_result_like_any_other(bench: Bench, lose: Callable[[], None]) -> None:
    result = noop.delay()
    bench.work()
    for _ in range(2):
        assert app.AsyncResult(result.id).state == "SUCCESS"
        assert app.AsyncResult(result.id).get(timeout=2) is None
        lose()


def test_failure_and_its_traceback_are_the_same_after_a_flush(bench: Bench, lose: Callable[[], None]) -> None:
    result = fail.delay("the reason")
    bench.work()
    for _ in range(2):
        fresh = app.AsyncResult(result.id)
        assert fresh.state == "FAILURE"
        assert isinstance(fresh.result, ValueError)
        assert "raise ValueError(why)" in fresh.traceback
        with pytest.raises(ValueError, match="the reason"):
            fresh.get(timeout=2)
        lose()


def test_children_are_known_after_a_flush(bench: Bench, lose: Callable[[], None]) -> None:
    result = spawn.delay(3)
    bench.work()
    for _ in range(2):
        children = app.AsyncResult(result.id).children
        assert [child.get(timeout=2) for child in children] == [0, 2, 4]
        lose()


def test_states_of_the_way_are_read_from_the_rows(bench: Bench, relay: Relay, db: Conn) -> None:
    result = retry_for_ever.delay()
    assert app.AsyncResult(result.id).state == "PENDING"
    message = bench.take()
    assert message is not None
    bench.run(message)
    db.execute("UPDATE jobs SET state = 'scheduled'")
    assert app.AsyncResult(result.id).state == "RETRY"


def test_cancelled_and_expired_jobs_are_revoked_also_after_a_flush(
    bench: Bench, relay: Relay, db: Conn, lose: Callable[[], None]
) -> None:
    cancelled, expired = add.delay(1, 2), add.apply_async((1, 2), expires=60)
    app.control.revoke(cancelled.id)
    db.execute("UPDATE jobs SET expires_at = clock_timestamp() - interval '1 second' WHERE id = %s", (expired.id,))
    relay.expire()
    for _ in range(2):
        for result in (cancelled, expired):
            fresh = app.AsyncResult(result.id)
            assert fresh.state == "REVOKED"
            with pytest.raises(TaskRevokedError):
                fresh.get(timeout=2)
        lose()


def test_job_that_used_up_its_retries_tells_the_last_error(bench: Bench, relay: Relay, lose: Callable[[], None]) -> None:
    result = retry_for_ever.delay()
    for _ in range(4):
        relay.round()
        bench.work()
    for _ in range(2):
        with pytest.raises(ValueError, match="never"):
            app.AsyncResult(result.id).get(timeout=2)
        lose()


# ---- servers away


def test_result_is_read_while_the_cache_is_down(stack: Stack, bench: Bench) -> None:
    before = add.delay(1, 2)
    bench.work()
    stack.cache.kill()
    after = add.delay(3, 4)
    bench.work()
    assert app.AsyncResult(before.id).get(timeout=5) == 3
    assert app.AsyncResult(after.id).get(timeout=5) == 7
    failed = fail.delay()
    bench.work()
    with pytest.raises(ValueError, match="as told"):
        failed.get(timeout=5)


def test_waiting_goes_on_through_an_outage_of_the_cache(stack: Stack, bench: Bench) -> None:
    result = add.delay(1, 2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(result.get, timeout=15)
        time.sleep(0.2)
        stack.cache.kill()
        time.sleep(0.2)
        stack.cache.start()
        bench.work()
        assert waiting.result() == 3


def test_who_waits_is_woken_at_once(bench: Bench) -> None:
    result = add.delay(1, 2)
    woken: list[float] = []

    def wait() -> None:
        result.get(timeout=10, interval=5)
        woken.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(1.0)  # by now it asks by itself every five seconds only
    bench.work()
    done = time.monotonic()
    thread.join()
    assert woken[0] - done < 1


def test_waiting_ends_with_a_timeout(bench: Bench) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        add.delay(1, 2).get(timeout=0.3)
    assert 0.3 <= time.monotonic() - started < 2


def test_commit_is_what_makes_a_result_not_what_redis_says(bench: Bench, db: Conn) -> None:
    result = add.delay(1, 2)
    message = bench.take()
    assert message is not None
    db.execute("UPDATE jobs SET revision = revision + 1")  # sent anew meanwhile: this delivery is stale
    bench.run(message)
    assert result.state == "PENDING"


# ---- options and groups


def test_ignored_result_is_not_kept_but_the_job_is_known_to_be_done(bench: Bench, db: Conn, lose: Callable[[], None]) -> None:
    by_task, by_call = silent.delay(5), add.apply_async((1, 2), ignore_result=True)
    bench.work()
    for result in (by_task, by_call):
        assert db.execute("SELECT state, result FROM job_history WHERE id = %s", (result.id,)).fetchone() == ("succeeded", None)
        fresh = app.AsyncResult(result.id)
        assert fresh.state == "SUCCESS"
        assert fresh.get(timeout=2) is None


def test_forgotten_result_is_gone_from_redis_and_postgres(bench: Bench, db: Conn, cache: Redis) -> None:
    result = echo.delay("secret")
    bench.work()
    result.get(timeout=2)
    result.forget()
    assert cache.keys("celery-task-meta-*") == []
    assert db.execute("SELECT state, result FROM job_history").fetchone() == ("succeeded", None), "that it ran stays on record"
    assert app.AsyncResult(result.id).result is None


def test_group_result_is_restored_after_a_flush(bench: Bench, lose: Callable[[], None]) -> None:
    result = group(add.s(i, i) for i in range(5))()
    result.save()
    bench.work()
    lose()
    restored = GroupResult.restore(result.id, app=app)
    assert restored is not None
    assert restored.get(timeout=5) == [0, 2, 4, 6, 8]
    assert restored.completed_count() == 5
    assert restored.successful()
    restored.delete()
    assert GroupResult.restore(result.id, app=app) is None


def test_group_of_groups_is_restored_flat_as_celery_has_it(bench: Bench, lose: Callable[[], None]) -> None:
    result = group(add.s(1, 1), group(add.s(2, 2), add.s(3, 3)))()
    result.save()
    bench.work()
    lose()
    assert GroupResult.restore(result.id, app=app).get(timeout=5) == [2, 4, 6]


def test_many_results_are_asked_for_at_once(bench: Bench, lose: Callable[[], None]) -> None:
    ids = [add.delay(i, 1).id for i in range(20)]
    bench.work()
    lose()
    found = dict(app.backend.get_many(ids, timeout=5))
    assert {job_id: meta["result"] for job_id, meta in found.items()} == {job_id: i + 1 for i, job_id in enumerate(ids)}


def test_many_results_come_as_they_are_ready(bench: Bench) -> None:
    results = group(add.s(i, i) for i in range(10))()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(results.get, timeout=10)
        time.sleep(0.1)
        bench.work()
        assert waiting.result() == [2 * i for i in range(10)]


def test_chord_completes_across_a_flush_between_its_parts(bench: Bench, relay: Relay, lose: Callable[[], None]) -> None:
    result = (group(add.s(i, i) for i in range(6)) | total.s()).delay()
    bench.work(most=3)
    lose()
    eventually(lambda: (relay.round(), bench.work()) and result.ready(), timeout=10)
    assert result.get(timeout=2) == 30


def test_join_and_iteration_work(bench: Bench) -> None:
    results = group(add.s(i, i) for i in range(3))()
    bench.work()
    assert results.join(timeout=2) == results.join_native(timeout=2) == [0, 2, 4]
    assert sorted(meta["result"] for _, meta in results.iter_native(timeout=2)) == [0, 2, 4]
    assert results.ready()
    assert not results.failed()
    assert [child.get(timeout=2) for child in results] == [0, 2, 4]
