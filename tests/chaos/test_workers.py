"""Workers killed, frozen, poisoned, or cut off from Redis with a job in hand."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from datetime import timedelta

import psutil
import psycopg
import pytest
from redis import Redis

from tests.chaos import support, tasks
from tests.chaos.conftest import Start
from tests.chaos.support import assert_all_done_once, sized
from tests.harness import Worker, eventually
from worker import faults
from worker.app import enqueue_many
from worker.embedded import Stack

#: Seconds the relay and the next worker get for a rescue, beside the silence after which a worker counts as dead.
RESCUE_S = 5.0
#: Seconds in which a job runs again whose process died under the eyes of its parent.
RERUN_S = 5.0
#: Seconds from the return of Redis to the start of a job.
RETURN_S = 5.0

_RUNNING_ON = "SELECT j.id FROM jobs j JOIN worker_nodes n ON n.id = j.worker_id WHERE j.state = 'running' AND n.pid = %s"


def _all_running(ids: list[str]) -> None:
    eventually(lambda: len(support.running(ids)) == len(ids), 15, what=f"{len(ids)} running jobs")


def test_the_jobs_of_a_killed_worker_run_again_and_others_are_undisturbed(rng: random.Random, crew: Start) -> None:
    workers = [support.worker() for _ in range(2)]
    crew(*workers)
    ids = enqueue_many(tasks.hold, [("killed", rng.uniform(2.0, 3.0)) for _ in range(4)])
    _all_running(ids)
    victim = rng.choice(workers)
    hit = [row[0] for row in support.rows(_RUNNING_ON, victim.pid)]
    assert len(hit) == 2
    since = support.now()
    victim.kill_tree()
    support.wait_until_ended(ids)
    assert_all_done_once(ids)
    assert support.attempts(ids) == {job_id: 2 if job_id in hit else 1 for job_id in ids}
    for job_id in hit:
        assert support.seconds_until_start([job_id], since) <= support.dead_s() + RESCUE_S


def test_killing_workers_again_and_again_under_load_loses_and_doubles_nothing(rng: random.Random, crew: Start) -> None:
    workers = [support.worker() for _ in range(2)]
    crew(*workers)
    ids = enqueue_many(tasks.write, [("load", rng.uniform(0.0, 0.05)) for _ in range(sized(200, 20_000))])
    for _ in range(sized(2, 20)):
        time.sleep(rng.uniform(0.2, 0.8))
        victim = rng.choice(workers)
        victim.kill_tree()
        crew(victim)
    support.wait_until_ended(ids, sized(30.0, 300.0))
    assert_all_done_once(ids)


@pytest.mark.parametrize("fence", ["connection", "token"])
def test_a_frozen_worker_commits_nothing_late_and_works_on_once_it_is_thawed(crew: Start, database_role: str, fence: str) -> None:
    """The relay ends a dead worker's connections. Where it may not, as with another role's, the claim token alone decides."""
    kept = fence == "token"
    frozen, other = support.worker(**({"DATABASE_URL": database_role} if kept else {})), support.worker()
    crew(frozen)
    ids = enqueue_many(tasks.hold, [("frozen", 3.0, not kept) for _ in range(2)])
    eventually(lambda: support.holding() == len(ids), 15, what="effects written and not committed")
    frozen.freeze()
    crew(other)
    again = "SELECT count(*) FROM jobs WHERE state = 'running' AND attempt = 2 AND id = ANY(%s)"
    eventually(lambda: support.one(again, ids) == len(ids), support.dead_s() + RESCUE_S, what="both jobs running elsewhere")
    frozen.thaw()  # Its time is up: it wants to commit at once, while the jobs run under other claims.
    frozen.wait_for_log("is no longer this attempt's" if kept else "terminating connection")
    support.wait_until_ended(ids)
    assert_all_done_once(ids)
    assert _pids_of_effects(ids) <= {child.pid for child in other.children()}
    other.kill_tree()
    later = enqueue_many(tasks.write, [("later",) for _ in range(4)])
    support.wait_until_ended(later)
    assert_all_done_once(ids + later)


def _pids_of_effects(ids: list[str]) -> set[int]:
    return {row[0] for row in support.rows("SELECT pid FROM chaos_effects WHERE job_id = ANY(%s)", ids)}


@pytest.fixture
def database_role() -> Iterator[str]:
    """The URL of the arena's database for a role of its own."""
    own = os.environ["DATABASE_URL"]
    with psycopg.connect(own, autocommit=True) as conn:
        conn.execute("CREATE ROLE somebody LOGIN PASSWORD 'else' IN ROLE holdfast")
    yield re.sub("//[^@]*@", "//somebody:else@", own)
    with psycopg.connect(own, autocommit=True) as conn:
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'somebody'")
        conn.execute("DROP ROLE somebody")


@pytest.mark.parametrize("action", ["kill", "stop"])
def test_whole_workers_ended_at_every_point_lose_and_double_nothing(crew: Start, action: str) -> None:
    doomed = [
        support.worker("solo", 1, HOLDFAST_FAULT=f"{point}:{action}")
        for point in (faults.AFTER_LOCK, faults.AFTER_CLAIM, faults.BEFORE_SETTLE, faults.AFTER_SETTLE)
    ]
    crew(*doomed)
    ids = enqueue_many(tasks.write, [("doomed",) for _ in range(8)])
    for worker in doomed:
        eventually(lambda worker=worker: _is_ended(worker), what=f"{worker.name} meeting its fault")
    healthy = support.worker()
    crew(healthy)
    support.wait_until_ended(ids, sized(20.0, 60.0))
    assert_all_done_once(ids)
    if action == "stop":
        healthy.kill_tree()
        for worker in doomed:
            worker.thaw()
        later = enqueue_many(tasks.write, [("later",) for _ in range(8)])
        support.wait_until_ended(later)
        assert_all_done_once(ids + later)


def _is_ended(worker: Worker) -> bool:
    return not worker.running or worker.tree()[0].status() == psutil.STATUS_STOPPED


@pytest.mark.parametrize("frozen", [False, True], ids=["stopped", "frozen"])
def test_a_long_job_is_not_stolen_while_redis_is_away(crew: Start, stack: Stack, frozen: bool) -> None:
    whole_s = sized(6.0, 60.0)
    workers = [support.worker() for _ in range(2)]
    crew(*workers)
    long = tasks.hold.delay("long", whole_s).id
    _all_running([long])
    time.sleep(whole_s / 4)
    if frozen:
        stack.redis.freeze()
    else:
        stack.redis.stop()
    time.sleep(whole_s / 2)
    stack.redis.thaw()
    stack.redis.start()
    since = support.now()
    after = tasks.write.delay("after").id
    support.wait_until_ended([long, after], whole_s)
    assert_all_done_once([long, after])
    assert support.attempts([long]) == {long: 1}
    assert support.seconds_until_start([after], since) <= RETURN_S
    for worker in workers:
        assert {float(pause) for pause in re.findall("Trying again in ([0-9.]+) seconds", worker.log())} <= {1.0}


def test_a_job_that_kills_its_process_is_discarded_after_three_deaths_and_others_finish(crew: Start) -> None:
    crew(support.worker())
    before = enqueue_many(tasks.write, [("innocent",) for _ in range(10)])
    poison = tasks.kill_child.delay().id
    after = enqueue_many(tasks.write, [("innocent",) for _ in range(10)])
    support.wait_until_ended([*before, poison, *after])
    assert_all_done_once(before + after)
    _assert_discarded(poison)


def test_a_job_that_kills_whole_workers_is_discarded_after_three_deaths_and_others_finish(crew: Start) -> None:
    worker = support.worker(concurrency=1)
    crew(worker)
    poison = tasks.kill_tree.delay().id
    others = enqueue_many(tasks.write, [("innocent",) for _ in range(10)])

    def supervised_until_discarded() -> bool:
        crew(worker)
        return support.state(poison) == "discarded"

    eventually(supervised_until_discarded, 3 * (support.dead_s() + RESCUE_S) + 10)
    support.wait_until_ended(others)
    assert_all_done_once(others)
    _assert_discarded(poison)


def _assert_discarded(poison: str) -> None:
    (row,) = support.rows("SELECT state, attempt, error FROM job_history WHERE id = %s", poison)
    assert row[:2] == ("discarded", 3)
    assert row[2].startswith("its worker died 3 times; the last: ")
    assert not support.one("SELECT count(*) FROM chaos_effects WHERE job_id = %s", poison)


def test_a_job_runs_again_at_once_when_its_process_is_killed(rng: random.Random, crew: Start) -> None:
    worker = support.worker()
    crew(worker)
    ids = enqueue_many(tasks.hold, [("child", 2.0) for _ in range(2)])
    _all_running(ids)
    since = support.now()
    rng.choice(worker.children()).kill()
    support.wait_until_ended(ids)
    assert_all_done_once(ids)
    (hit,) = (job_id for job_id, count in support.attempts(ids).items() if count == 2)
    assert support.seconds_until_start([hit], since) <= RERUN_S


def test_a_message_taken_by_a_worker_that_dies_before_its_claim_is_not_lost(crew: Start, broker: Redis) -> None:
    idle = [support.worker("solo", 1) for _ in range(sized(3, 6))]
    crew(*idle)
    for worker in idle:
        worker.freeze()
    ids = [tasks.write.delay("taken").id for _ in idle]
    eventually(lambda: not support.peek(broker), what="every message taken by a frozen worker")
    for worker in idle:
        worker.kill_tree()
    crew(support.worker("solo", 1))
    support.wait_until_ended(ids)
    assert_all_done_once(ids)
    assert set(support.attempts(ids).values()) == {1}


def test_a_countdown_beyond_any_visibility_timeout_runs_once(crew: Start, broker: Redis) -> None:
    countdown_s = 4.0
    crew(*(support.worker("solo", 1, include="tests.chaos.impatient") for _ in range(2)))
    asked = support.now()
    ids = [tasks.write.apply_async(("later",), countdown=countdown_s).id for _ in range(10)]
    assert not support.peek(broker), "a job waits for its time in Postgres"
    support.wait_until_ended(ids)
    assert_all_done_once(ids)
    assert set(support.attempts(ids).values()) == {1}
    first = support.one("SELECT min(started_at) FROM job_history WHERE id = ANY(%s)", ids)
    assert first - asked >= timedelta(seconds=countdown_s)
