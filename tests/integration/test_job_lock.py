"""The lock of a job: which deliveries it keeps out, and which it must not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import Empty
from typing import Any
from uuid import uuid4

import pytest
from kombu import Queue
from kombu.utils.json import loads
from redis import Redis

from tests import sample_tasks as tasks
from tests.harness import eventually
from tests.integration.conftest import Bench
from worker.app import app
from worker.ledger.message import encode
from worker.store import keys, script

LIFE_MS = 10_000
#: Less than the pause before the second try, so that this finds the lock free however slow the machine is.
MOMENT_MS = 15


def test_a_delivery_that_meets_the_lock_of_a_running_one_is_dropped_and_the_job_stays(bench: Bench, redis: Redis) -> None:
    job = tasks.add.delay(1, 2)
    redis.set(keys.job_lock(job.id), "another", px=LIFE_MS)
    bench.work()
    assert job.status == "PENDING"
    assert redis.get(keys.job_lock(job.id)) == b"another"


def test_a_delivery_that_meets_the_lock_of_a_stale_copy_for_a_moment_runs(bench: Bench, redis: Redis) -> None:
    """Dropped for that, the job would wait for the audit: the copy lets go as soon as its claim has failed."""
    job = tasks.add.delay(1, 2)
    message = bench.take()
    assert message
    redis.set(keys.job_lock(job.id), "a stale copy", px=MOMENT_MS)
    bench.run(message)
    assert job.get(timeout=5) == 3


# ---- the lock that comes with the message


def popped(redis: Redis, token: str, *lists: str) -> list[Any] | None:
    return script("queue_pop")(redis, list(lists), [token, LIFE_MS, *keys.job_lock("\0").split("\0")])  # type: ignore[no-any-return]


def test_message_is_taken_with_the_lock_of_its_job(bench: Bench, redis: Redis) -> None:
    urgent, usual = tasks.add.apply_async((1, 2), priority=0), tasks.add.delay(1, 2)
    for job in (urgent, usual):
        found = popped(redis, job.id, *keys.queue_lists("default"))
        assert found
        assert (loads(found[1])["headers"]["id"], found[2]) == (job.id, 1)
        assert redis.get(keys.job_lock(job.id)) == job.id.encode()
        assert 0 < redis.pttl(keys.job_lock(job.id)) <= LIFE_MS  # type: ignore[operator]
    assert popped(redis, "t", *keys.queue_lists("default")) is None


def test_message_whose_job_is_locked_comes_without_it(bench: Bench, redis: Redis) -> None:
    job = tasks.add.delay(1, 2)
    redis.set(keys.job_lock(job.id), "another", px=LIFE_MS)
    found = popped(redis, "t", "default\x06\x163")
    assert found
    assert found[2] == 0
    assert redis.get(keys.job_lock(job.id)) == b"another"


@pytest.mark.parametrize("item", [b"", b"{}", b'{"job":"a"', b'x,"job":"a b"}', b'x,"job":"a","job":7}', b"\xff" * 400])
def test_what_names_no_job_at_its_end_is_taken_without_a_lock(redis: Redis, item: bytes) -> None:
    redis.lpush("odd", item)
    assert popped(redis, "t", "odd") == [b"odd", item, 0]
    assert redis.dbsize() == 0


def test_full_redis_gives_the_message_out_all_the_same(bench: Bench, redis: Redis) -> None:
    job = tasks.add.delay(1, 2)
    redis.config_set("maxmemory", 1)
    try:
        found = popped(redis, "t", *keys.queue_lists("default"))
    finally:
        redis.config_set("maxmemory", 0)
    assert found
    assert loads(found[1])["headers"]["id"] == job.id


class Taken:
    """What a consumer on the hardened transport is given, one message a look."""

    def __init__(self) -> None:
        self.connection = app.connection_for_read()
        self.headers: list[dict[str, Any]] = []
        consumer = self.connection.Consumer([Queue("default")], no_ack=True, accept=["json"], prefetch_count=0)
        consumer.register_callback(lambda body, message: self.headers.append(message.headers))
        consumer.consume()
        self.channel = consumer.channel

    def look(self) -> dict[str, Any]:
        """Return the headers of the next message."""
        count = len(self.headers)
        while len(self.headers) == count:
            try:
                self.connection.drain_events(timeout=5)
            except Empty:
                pass
        return self.headers[-1]


@pytest.fixture
def taken(env: dict[str, str]) -> Iterator[Taken]:
    found = Taken()
    yield found
    found.connection.release()


def test_worker_takes_the_lock_with_every_message_of_a_backlog_but_the_first(taken: Taken, redis: Redis) -> None:
    jobs = [tasks.add.delay(n, n) for n in range(4)]
    found = [taken.look() for _ in jobs]
    assert [headers["id"] for headers in found] == [job.id for job in jobs]
    assert "l" not in found[0]["holdfast"]
    for headers in found[1:]:
        assert redis.get(keys.job_lock(headers["id"])) == headers["holdfast"]["l"].encode()
        assert time.monotonic() - headers["holdfast"]["p"] < 60
    assert len({headers["holdfast"]["l"] for headers in found[1:]}) == 3


def test_lock_and_time_that_a_message_brings_along_are_not_believed(taken: Taken, redis: Redis) -> None:
    forged = tasks.add.delay(1, 2)
    (raw,) = redis.lrange("default\x06\x163", 0, -1)  # type: ignore[misc]
    message = loads(raw)
    message["headers"]["holdfast"] |= {"l": "0" * 32, "p": time.monotonic(), "u": 0.0}
    redis.delete("default\x06\x163")
    redis.rpush("default\x06\x163", *[encode(message)] * 2)
    found = [taken.look(), taken.look()]
    assert [headers["id"] for headers in found] == [forged.id] * 2
    assert {"l", "p", "u"}.isdisjoint(found[0]["holdfast"])
    assert found[1]["holdfast"]["l"] != "0" * 32


def test_message_that_comes_as_the_worker_closes_goes_back_to_its_place_and_without_its_lock(taken: Taken, redis: Redis) -> None:
    jobs = [tasks.add.delay(n, n) for n in range(4)]
    assert [taken.look()["id"] for _ in jobs[:2]] == [job.id for job in jobs[:2]]
    rest = redis.lrange("default\x06\x163", 0, -1)
    taken.channel._brpop_start()
    eventually(lambda: redis.llen("default\x06\x163") == 1, what="the third message on its way")
    taken.connection.release()
    assert redis.lrange("default\x06\x163", 0, -1) == rest
    assert redis.exists(keys.job_lock(jobs[2].id)) == 0


def test_redis_that_is_too_full_to_take_a_message_back_keeps_no_worker_from_closing(taken: Taken, redis: Redis) -> None:
    """The audit sends its job again, which the lock does not keep waiting."""
    jobs = [tasks.add.delay(n, n) for n in range(4)]
    assert [taken.look()["id"] for _ in jobs[:2]] == [job.id for job in jobs[:2]]
    taken.channel._brpop_start()
    eventually(lambda: redis.llen("default\x06\x163") == 1, what="the third message on its way")
    redis.config_set("maxmemory", 1)
    try:
        taken.channel.close()
    finally:
        redis.config_set("maxmemory", 0)
    assert redis.llen("default\x06\x163") == 1
    assert redis.exists(keys.job_lock(jobs[2].id)) == 0


def test_message_that_waited_for_its_child_too_long_is_not_run(bench: Bench) -> None:
    job = tasks.add.delay(1, 2)
    message = bench.take()
    assert message
    for until, state in ((time.monotonic() - 1, "PENDING"), (time.monotonic() + 60, "SUCCESS")):
        message["headers"]["holdfast"]["u"] = until
        bench.run(message)
        assert job.status == state


def test_message_that_names_another_job_brings_no_lock(taken: Taken, redis: Redis) -> None:
    jobs = [tasks.add.delay(n, n) for n in range(2)]
    raws = [raw.replace(b'"job":"' + jobs[1].id.encode(), b'"job":"another') for raw in redis.lrange("default\x06\x163", 0, -1)]  # type: ignore[union-attr]
    redis.delete("default\x06\x163")
    redis.rpush("default\x06\x163", *raws)
    assert ["l" in taken.look()["holdfast"] for _ in jobs] == [False, False]


def test_scripts_that_the_server_forgot_or_refuses_keep_no_message_back(taken: Taken, redis: Redis) -> None:
    jobs = [tasks.add.delay(n, n) for n in range(6)]
    assert [taken.look()["id"] for _ in jobs[:2]] == [job.id for job in jobs[:2]]
    redis.script_flush()
    assert taken.look()["id"] == jobs[2].id
    redis.execute_command("ACL", "SETUSER", "default", "-evalsha")
    try:
        assert [taken.look()["id"] for _ in jobs[3:]] == [job.id for job in jobs[3:]]
    finally:
        redis.execute_command("ACL", "SETUSER", "default", "+evalsha")


def sent_with(bench: Bench, token: str, asked_at: float) -> dict[str, Any]:
    message = bench.take()
    assert message
    message["headers"]["holdfast"] |= {"l": token, "p": asked_at}
    return message


def test_lock_that_came_with_the_message_is_the_jobs_own(bench: Bench, redis: Redis) -> None:
    job, token = tasks.lock_and_token.delay(), uuid4().hex
    redis.set(keys.job_lock(job.id), token, px=LIFE_MS)
    bench.run(sent_with(bench, token, time.monotonic()))
    assert job.get(timeout=5) == [token, token]
    eventually(lambda: redis.exists(keys.job_lock(job.id)) == 0, what="the release of the lock")


def test_lock_that_came_long_ago_is_renewed_or_taken_anew(bench: Bench, redis: Redis) -> None:
    held, gone = tasks.lock_and_token.delay(), tasks.lock_and_token.delay()
    redis.set(keys.job_lock(held.id), "a" * 32, px=LIFE_MS)
    for job in (held, gone):
        bench.run(sent_with(bench, "a" * 32, time.monotonic() - 60))
        assert job.get(timeout=5) == ["a" * 32] * 2


def test_lock_that_came_long_ago_and_went_to_another_keeps_the_job_out(bench: Bench, redis: Redis) -> None:
    job = tasks.lock_and_token.delay()
    redis.set(keys.job_lock(job.id), "another", px=LIFE_MS)
    bench.run(sent_with(bench, "a" * 32, time.monotonic() - 60))
    assert job.status == "PENDING"
    assert redis.get(keys.job_lock(job.id)) == b"another"


def test_delivery_that_cannot_run_gives_up_the_lock_it_came_with(bench: Bench, redis: Redis) -> None:
    job = tasks.add.delay(1, 2)
    message = sent_with(bench, "a" * 32, time.monotonic())
    message["headers"]["holdfast"]["r"] = 7  # a stale copy
    redis.set(keys.job_lock(job.id), "a" * 32, px=LIFE_MS)
    bench.run(message)
    assert redis.exists(keys.job_lock(job.id)) == 0
