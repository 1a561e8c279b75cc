"""The Python client against a real gateway: jobs in, results out, errors by their code, and no job twice over a bad line."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from tests.integration.conftest import Bench
from tests.integration.door import ADD, ECHO, Door, key_for
from tests.integration.door import door as door
from tests.sample_tasks import fail
from worker import errors
from worker.client import AsyncClient, Client

Conn = psycopg.Connection[Any]


@pytest.fixture
def jobs(door: Door) -> Iterator[Client]:
    """A client that may enqueue and read."""
    with Client(door.url, key_for("me"), timeout_s=30) as client:
        yield client


@contextmanager
def working(bench: Bench) -> Iterator[None]:
    """Run what comes meanwhile."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.02):
            bench.work()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        try:
            yield
        finally:
            over.set()
            running.result()


class Line:
    """A line to the gateway that breaks: of each of the first connections only so many bytes of the answers come through."""

    def __init__(self, door: Door, *broken: int) -> None:
        self._to = door.socket.getsockname()
        self._broken = list(broken)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            left = self._broken[self.connections] if self.connections < len(self._broken) else None
            self.connections += 1
            far = socket.create_connection(self._to)
            threading.Thread(target=self._copy, args=(near, far, None), daemon=True).start()
            threading.Thread(target=self._copy, args=(far, near, left), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket, left: int | None) -> None:
        try:
            while piece := source.recv(65_536):
                cut = piece if left is None else piece[:left]
                target.sendall(cut)
                left = None if left is None else left - len(cut)
                if left == 0:
                    break
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def line(door: Door) -> Iterator[Callable[..., Line]]:
    """Lay lines to the gateway."""
    laid: list[Line] = []

    def lay(*broken: int) -> Line:
        laid.append(Line(door, *broken))
        return laid[-1]

    yield lay
    for one in laid:
        one.close()


# ---- one job


def test_job_goes_in_once_and_its_result_comes_out(jobs: Client, bench: Bench, db: Conn) -> None:
    job_id = jobs.enqueue(ADD, [1], {"y": 2}, idempotency_key="one of a kind", metadata={"order": 7})
    assert jobs.enqueue(ADD, [1], {"y": 2}, idempotency_key="one of a kind") == job_id
    assert db.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
    with working(bench):
        job = jobs.wait(job_id)
    assert (job.state, job.result, job.metadata, job.idempotency_key) == ("succeeded", 3, {"order": 7}, "one of a kind")
    assert job.ended
    assert job.finished_at
    assert job.finished_at > job.created_at


def test_client_that_waits_in_vain_is_told_so(jobs: Client) -> None:
    with pytest.raises(TimeoutError, match=r"scheduled after 0\.3 s"):
        jobs.wait(jobs.enqueue(ADD, [1, 2], delay=3600), 0.3)


def test_waiting_job_is_cancelled_once_and_can_be_queued_again(jobs: Client) -> None:
    job_id = jobs.enqueue(ADD, [1, 2], delay="1h")
    assert jobs.cancel(job_id) == "cancelled"
    with pytest.raises(errors.GatewayError) as caught:
        jobs.cancel(job_id)
    assert (caught.value.status, caught.value.code) == (409, "not_cancellable")
    assert jobs.retry(job_id) == "queued again"
    assert jobs.get(job_id).state == "queued"


# ---- many


def test_batch_is_all_or_none_or_each_for_itself(jobs: Client, db: Conn) -> None:
    good, bad = {"task": ADD, "args": [1, 2], "delay": 3600}, {"task": ADD, "args": ["one", 2]}
    with pytest.raises(errors.InvalidArguments) as caught:
        jobs.enqueue_many([good, bad])  # type: ignore[list-item]
    assert caught.value.field == "jobs.1.args.0"
    assert db.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
    first, second = jobs.enqueue_each([good, bad])  # type: ignore[list-item]
    assert jobs.get(str(first)).state == "scheduled"
    assert isinstance(second, errors.InvalidArguments)
    assert second.field == "args.0"
    assert len(set(jobs.enqueue_many([good] * 3))) == 3  # type: ignore[list-item]
    assert jobs.enqueue_many([]) == []


def test_list_goes_through_all_pages(jobs: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.client.asking._PAGE", 2)
    ids = jobs.enqueue_many([{"task": ADD, "args": [n, 0], "delay": 3600} for n in range(5)])
    assert sorted(job.id for job in jobs.list(state=["scheduled", "queued"], task=ADD)) == sorted(ids)
    assert list(jobs.list(state="failed")) == []


def test_tasks_are_told_with_their_arguments(jobs: Client) -> None:
    (found,) = [task for task in jobs.tasks() if task["name"] == ADD]
    assert found["arguments"]["required"] == ["x", "y"]


# ---- errors


@pytest.mark.parametrize(
    ("call", "kind", "code", "field"),
    [
        ({"task": "no.such.task"}, errors.UnknownTask, "unknown_task", "task"),
        ({"task": ADD, "args": ["one", 2]}, errors.InvalidArguments, "invalid_arguments", "args.0"),
        ({"task": ADD, "args": [1, 2], "queue": "nowhere"}, errors.UnknownQueue, "unknown_queue", "queue"),
        ({"task": ADD, "args": [1, 2], "priority": 11}, errors.InvalidJob, "invalid_job", "priority"),
        ({"task": ECHO, "args": ["x" * 1_100_000]}, errors.MessageTooLarge, "too_large", "args"),
    ],
)
def test_refusal_is_the_error_of_its_code(jobs: Client, call: Any, kind: type, code: str, field: str) -> None:
    with pytest.raises(kind) as caught:
        jobs.enqueue(call.pop("task"), **call)
    assert type(caught.value) is kind
    assert (caught.value.__dict__["code"], caught.value.__dict__["field"]) == (code, field)


def test_other_payload_under_a_key_and_another_callers_job_are_errors_of_their_own(jobs: Client, door: Door) -> None:
    job_id = jobs.enqueue(ADD, [1, 2], idempotency_key="k", delay=3600)
    with pytest.raises(errors.IdempotencyConflict):
        jobs.enqueue(ADD, [1, 3], idempotency_key="k")
    with Client(door.url, key_for("other")) as other, pytest.raises(errors.JobNotFound):
        other.get(job_id)
    with Client(door.url, "hf_not_a_key") as nobody, pytest.raises(errors.GatewayError) as caught:
        nobody.get(job_id)
    assert caught.value.status == 401


# ---- a bad line


def test_answers_that_are_lost_make_no_second_job(line: Callable[..., Line], door: Door, db: Conn) -> None:
    bad = line(1, 20)
    with Client(bad.url, key_for("me")) as jobs:
        job_id = jobs.enqueue(ADD, [1, 2], delay=3600)
        assert bad.connections == 3
        assert db.execute("SELECT id FROM jobs").fetchall() == [(job_id,)]


def test_gateway_that_is_not_there_is_waited_for_and_then_told_of() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}"
    with Client(url, "hf_key", patience_s=0.5) as jobs, pytest.raises(errors.GatewayUnreachable, match="ConnectError"):
        jobs.get("x")


def test_events_come_once_each_over_a_line_that_breaks(line: Callable[..., Line], door: Door, bench: Bench) -> None:
    key = key_for("me")
    with Client(door.url, key) as jobs, working(bench):
        job_id = jobs.enqueue(fail.name)
        jobs.wait(job_id)
        whole = list(jobs.events(job_id))
    assert [event.data["state"] for event in whole] == ["accepted", "running", "failed"]
    assert whole[-1].is_last
    bad = line(*range(500, 900, 50))
    with Client(bad.url, key) as jobs:
        assert list(jobs.events(job_id)) == whole
        assert bad.connections > 1
        assert list(jobs.events(job_id, last_id=whole[0].id)) == whole[1:]
        assert list(jobs.events(job_id, last_id=whole[-1].id)) == []


# ---- with an event loop


def test_async_client_does_what_the_other_does(line: Callable[..., Line], door: Door, bench: Bench, db: Conn) -> None:
    bad, key = line(1), key_for("me")

    async def run() -> None:
        async with AsyncClient(bad.url, key) as jobs:
            job_id = await jobs.enqueue(ADD, [1, 2], idempotency_key="k")
            assert await jobs.enqueue(ADD, [1, 2], idempotency_key="k") == job_id
            job = await jobs.wait(job_id)
            assert (job.state, job.result) == ("succeeded", 3)
            assert [event.data["state"] async for event in jobs.events(job_id)] == ["accepted", "running", "succeeded"]
            ids = await jobs.enqueue_many([{"task": ADD, "args": [n, 0], "delay": 3600} for n in range(3)])
            assert {job.id async for job in jobs.list(state="scheduled")} == set(ids)
            (refused,) = await jobs.enqueue_each([{"task": "no.such.task"}])
            assert isinstance(refused, errors.UnknownTask)
            assert await jobs.cancel(ids[0]) == "cancelled"
            assert await jobs.retry(ids[1]) == "due now"
            assert (await jobs.get(ids[0])).state == "cancelled"
            assert ADD in {task["name"] for task in await jobs.tasks()}
            with pytest.raises(TimeoutError):
                await jobs.wait(ids[2], 0.2)
            with pytest.raises(errors.InvalidArguments):
                await jobs.enqueue(ADD, ["one", 2])

    with working(bench):
        asyncio.run(run())
    assert db.execute("SELECT count(*) FROM job_history").fetchone() == (2,)
