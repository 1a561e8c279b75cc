"""A process killed, stopped or failing at each named point of a job's way: nothing is lost and nothing doubled."""

from __future__ import annotations

import signal
from uuid import uuid4

import pytest
from celery import group

from tests.chaos import support, tasks
from tests.chaos.conftest import Start
from tests.chaos.support import assert_all_done_once, sized
from tests.harness import Worker, eventually
from worker import faults
from worker.app import enqueue_in, enqueue_many
from worker.db import session

ACCEPTING = (faults.AFTER_INSERT, faults.AFTER_COMMIT, faults.AFTER_PUBLISH)
RUNNING = (faults.AFTER_LOCK, faults.AFTER_CLAIM, faults.BEFORE_SETTLE, faults.AFTER_SETTLE)
#: No job's: died at in tests/integration/test_cache_outbox.py.
CACHING = (faults.BEFORE_INVALIDATE,)
#: Died at in tests/integration/test_intake.py and test_events.py.
STREAMING = (faults.AFTER_READ, faults.BEFORE_ACK, faults.AFTER_ACK, faults.BEFORE_REMEMBER)
#: Points that a job has to be armed for before it begins; for the others it arms its process itself.
BEFORE_THE_BODY = (faults.AFTER_LOCK, faults.AFTER_CLAIM)

#: Seconds in which a job must end whose lock was left behind: the lock runs out, and the audit looks again.
END_S = sized(20.0, 60.0)


def test_every_point_is_tested() -> None:
    assert {*ACCEPTING, *RUNNING, *CACHING, *STREAMING} == set(faults.POINTS)


# ---- accepting


@pytest.fixture(scope="module")
def worker(arena: Start) -> Worker:
    """The one worker, of one process, and the relay."""
    worker = support.worker(concurrency=1)
    arena(worker)
    return worker


def _ids(count: int) -> list[str]:
    return [str(uuid4()) for _ in range(count)]


@pytest.mark.parametrize("point", ACCEPTING)
def test_a_caller_killed_there_leaves_each_job_whole_or_not_at_all(worker: Worker, point: str) -> None:
    (alone,), grouped, ours = _ids(1), _ids(3), _ids(2)
    bulk = [f"bulk-{point}-{n}" for n in range(5)]

    def in_own_transaction() -> None:
        with session() as own, own.begin():
            with enqueue_in(own):
                for job_id in ours:
                    tasks.write.apply_async(task_id=job_id)

    ways = (
        lambda: tasks.write.apply_async(task_id=alone),
        lambda: group(tasks.write.s().set(task_id=job_id) for job_id in grouped).apply_async(),
        in_own_transaction,
        lambda: enqueue_many(tasks.write, [(note,) for note in bulk]),
    )
    for way in ways:
        assert support.die_at(f"{point}:kill", way) == -signal.SIGKILL
    # A single insert is its own commit; what takes several statements is undone when it dies before the commit.
    together = [] if point == faults.AFTER_INSERT else grouped + ours
    support.wait_until_ended([alone, *together], END_S)
    eventually(lambda: not support.one("SELECT count(*) FROM jobs"), END_S, what="every job ended")
    assert_all_done_once([alone, *together])
    known = {row[0] for row in support.rows("SELECT id FROM job_history WHERE id = ANY(%s)", [alone, *grouped, *ours])}
    assert known == {alone, *together}
    assert {note: support.notes()[note] for note in bulk} == dict.fromkeys(bulk, int(point != faults.AFTER_INSERT))


# ---- running


def _doomed_chain(point: str, action: str) -> list[str]:
    """Send a job that meets the fault, and one that follows it; return the ids of both."""
    fault = f"{point}:{action}"
    if point in BEFORE_THE_BODY:
        tasks.arm.delay(fault).get(timeout=END_S)
        first = tasks.write.si("armed")
    else:
        first = tasks.die_at.si(fault)
    followed = (first | tasks.write.si("follows")).apply_async()
    return [followed.parent.id, followed.id]


@pytest.mark.parametrize("point", [*RUNNING, faults.AFTER_INSERT, faults.AFTER_PUBLISH])
def test_a_pool_process_killed_there_loses_and_doubles_nothing(worker: Worker, point: str) -> None:
    child = worker.children()[0].pid
    ids = _doomed_chain(point, "kill")
    eventually(lambda: child not in [p.pid for p in worker.children()], 15, what="the death of the process")
    eventually(lambda: support.state(ids[1]), END_S, what="the job that follows")
    support.wait_until_ended(ids, END_S)
    assert_all_done_once(ids)


@pytest.mark.parametrize(
    ("point", "outcome"),
    [
        (faults.AFTER_LOCK, "succeeded"), (faults.AFTER_CLAIM, "failed"),
        (faults.BEFORE_SETTLE, "failed"), (faults.AFTER_SETTLE, "succeeded"),
    ],
)  # fmt: skip
def test_an_error_there_ends_the_job_once_with_its_effects_or_without(worker: Worker, point: str, outcome: str) -> None:
    ids = _doomed_chain(point, "raise")
    eventually(lambda: [support.state(job_id) for job_id in ids] == [outcome, outcome], END_S)
    if outcome == "succeeded":
        assert_all_done_once(ids)
    else:
        assert not support.one("SELECT count(*) FROM chaos_effects WHERE job_id = ANY(%s)", ids)
