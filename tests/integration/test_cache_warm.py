"""Warming: what is planned and what is read most is refreshed before it is out of date, within bounds, and told truly."""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from redis import Redis

from tests.harness import eventually
from tests.integration.conftest import Bench
from worker.app import app
from worker.cache import MISSING, cached, hot, invalidate, loaders
from worker.cache.steps import new_lease
from worker.cache.warm import warm
from worker.embedded import Stack
from worker.engine import beat
from worker.store import keys
from worker.tasks import cache as tasks

loads: list[Any] = []


@cached(ttl=60, name="test.planned", warm=[("a",), ("b",)], tags=("tag:{name}",))
def planned(name: str) -> int:
    loads.append(name)
    return len(loads)


@cached(ttl=60, name="test.hot")
def popular(number: int) -> int:
    loads.append(number)
    time.sleep(number / 1000)
    return len(loads)


@cached(ttl=60, name="test.failing", warm=lambda: [(1,)] if _failing else [])
def failing(number: int) -> int:
    raise OSError("the source is away")


@cached(ttl=60, name="test.async", warm=lambda: [(1,)] if _asynchronous else [])
async def later(number: int) -> int:
    loads.append(number)
    return number


_failing: list[int] = []
_asynchronous: list[int] = []


@pytest.fixture(autouse=True)
def _patient(conf: Callable[..., None]) -> None:
    """A machine that is too busy for the deadline of the cache is no outage here."""
    conf(cache_timeout_ms=2000)


@pytest.fixture(autouse=True)
def _fresh(env: dict[str, str]) -> Iterator[None]:
    loads.clear()
    yield
    _failing.clear()
    _asynchronous.clear()


def ours(reports: list[Any]) -> dict[str, Any]:
    return {report.key: report for report in reports if report.key.startswith("test.")}


def run(**bounds: Any) -> dict[str, Any]:
    return ours(warm(pause=lambda _: None, **bounds))


def age(cache: Redis, key: str, seconds: float) -> None:
    """Make an entry look as if it had been filled so long ago."""
    entry = keys.cache_entry(key)
    cache.pexpire(entry, int(cache.pttl(entry) - 1000 * seconds))  # type: ignore[operator]


def test_planned_values_are_there_before_anybody_asks(cache: Redis) -> None:
    assert set(run()) == {"test.planned:a", "test.planned:b"}
    assert planned.get("a") is not MISSING
    assert sorted(loads) == ["a", "b"]


def test_value_that_is_not_near_its_end_is_left_alone(cache: Redis) -> None:
    run()
    assert run() == {}
    age(cache, "test.planned:a", 30)
    (report,) = run().values()
    assert (report.key, report.outcome, report.advanced) == ("test.planned:a", "filled", True)
    assert report.age_before_s > 29
    assert report.age_after_s < 1


def test_value_whose_tag_was_invalidated_is_warmed(cache: Redis) -> None:
    run()
    invalidate((), ["tag:a"])
    assert set(run()) == {"test.planned:a"}


def test_hottest_are_warmed_after_the_planned_and_the_hottest_first(cache: Redis) -> None:
    for number, reads in ((3, 400), (1, 1200), (2, 4)):
        for _ in range(reads):
            hot.note("test.hot", (number,))
    hot.flush()
    found = list(run())
    assert found[:2] == ["test.planned:a", "test.planned:b"]
    assert found[2:4] == ["test.hot:1", "test.hot:3"]


def test_reads_rank_their_loader_and_its_arguments(cache: Redis) -> None:
    for _ in range(200):
        popular(7)
    hot.flush()
    (first, *_rest) = hot.top(5)
    assert (first.name, first.args) == ("test.hot", [7])
    assert 50 < first.reads < 500


def test_run_is_bounded_by_count(cache: Redis) -> None:
    assert len(warm(most=1, pause=lambda _: None)) == 1


def test_run_is_bounded_by_seconds_of_loading_and_rests_as_long_as_it_loads(cache: Redis) -> None:
    run()
    for number in range(100, 110):
        for _ in range(400):
            hot.note("test.hot", (number,))
    hot.flush()
    rests: list[float] = []
    loads = [report.load_s for report in warm(budget_s=0.25, pause=rests.append)]
    assert sum(loads[:-1]) < 0.25 <= sum(loads), "ten of a tenth of a second each were to be had"
    assert rests == loads


def test_failing_loader_is_told_and_holds_up_no_other(cache: Redis) -> None:
    _failing.append(1)
    found = run()
    assert (found["test.failing:1"].outcome, found["test.failing:1"].advanced) == ("failed", False)
    assert "the source is away" in found["test.failing:1"].error
    assert found["test.planned:b"].advanced


def test_async_loader_is_warmed_like_any_other(cache: Redis) -> None:
    _asynchronous.append(1)
    assert run()["test.async:1"].advanced
    age(cache, "test.async:1", 30)
    assert run()["test.async:1"].advanced


def test_value_that_somebody_else_loads_is_left_to_them(cache: Redis) -> None:
    for _ in range(400):
        hot.note("test.hot", (1,))
    hot.flush()
    cache.set(keys.cache_lease("test.hot:1"), new_lease(()), px=3000)
    report = run()["test.hot:1"]
    assert (report.outcome, report.advanced) == ("held", False)
    assert 1 not in loads


def test_what_the_ranking_names_and_nobody_knows_is_passed_over(cache: Redis) -> None:
    for name, args in (("gone.loader", (1,)), ("test.hot", ("no number",)), ("test.hot", (1, 2, 3))):
        for _ in range(400):
            hot.note(name, args)
    hot.flush()
    found = run()
    assert {key for key, report in found.items() if report.advanced} == {"test.planned:a", "test.planned:b"}


def test_moment_among_the_hottest_is_warmed_under_its_own_key_and_once(cache: Redis) -> None:
    @cached(ttl=1000, name="test.moment")
    def at_moment(at: datetime, *, zone: str) -> str:
        loads.append(at)
        return f"{at} {zone}"

    noon = datetime(2024, 1, 1, 12, tzinfo=UTC)
    for _ in range(400):
        hot.note("test.moment", (noon, "x"))
    hot.flush()
    (report,) = [one for key, one in run().items() if key.startswith("test.moment")]
    assert (report.key, report.advanced) == (at_moment.key(noon, zone="x"), True)
    assert at_moment(noon, zone="x") == f"{noon} x"
    assert not [key for key in run() if key.startswith("test.moment")]
    assert [at for at in loads if at == noon] == [noon]


def test_members_of_the_ranking_that_are_none_of_ours_are_passed_over(cache: Redis) -> None:
    popular(7)
    for _ in range(400):
        hot.note("test.hot", (7,))
    hot.flush()
    strange = (b"garbage", b"[1]", b"[1, 2]", b'["a", "b"]', b"7", b"\xff")
    cache.zadd(keys.cache_hot(), dict.fromkeys(strange, 10000))
    assert [found.args for found in hot.top(20)] == [[7]]
    assert "test.planned:a" in run()


def test_ranking_fades_also_when_warming_fails(cache: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(4000):
        hot.note("gone.loader", (1,))
    hot.flush()
    before = hot.top(1)[0].reads

    def fail(**_: Any) -> list[Any]:
        raise OSError("out of sockets")

    monkeypatch.setattr(tasks, "warm", fail)
    with pytest.raises(OSError, match="out of sockets"):
        tasks.warm_up()
    assert hot.top(1)[0].reads == pytest.approx(before * 0.9)


def test_redis_away_is_told_and_ends_the_run(stack: Stack, cache: Redis) -> None:
    stack.cache.kill()
    reports = warm(pause=lambda _: None)
    assert [report.outcome for report in reports] == ["away"]


def test_job_warms_on_the_schedule_of_beat_and_tells_by_key(bench: Bench, cache: Redis, db: Any) -> None:
    beat.declare(app)
    db.execute("UPDATE schedules SET next_tick = clock_timestamp() WHERE name = 'cache.warm'")
    assert beat.tick(app) == 1
    (job_id,) = bench.work()
    told = {report["key"]: report for report in app.AsyncResult(job_id).get(timeout=5)}
    assert told["test.planned:a"]["advanced"] is True
    assert told["statistics.activity:24"]["advanced"] is True
    assert told["statistics.backlog:value"]["advanced"] is True


def test_every_run_lets_the_ranking_fade(cache: Redis) -> None:
    for _ in range(4000):
        hot.note("gone.loader", (1,))
    hot.flush()
    before = hot.top(1)[0].reads
    tasks.warm_up()
    assert hot.top(1)[0].reads == pytest.approx(before * 0.9)


# ---- by job


def test_due_value_is_refreshed_by_a_worker(cache: Redis, redis: Redis, bench: Bench) -> None:
    @cached(ttl=60, stale_while_revalidate=600, name="test.by_job", refresh="job")
    def by_job(number: int) -> int:
        loads.append(number)
        return len(loads)

    assert by_job(5) == 1
    age(cache, "test.by_job:5", 70)
    assert by_job(5) == 1, "who reads is given the present value"
    eventually(lambda: bench.waiting(), 5, what="a job in the queue")
    assert len(bench.waiting()) == 1
    assert loads == [5]
    message = bench.take()
    assert message is not None
    assert message["headers"]["task"] == "cache.refresh"
    message["body"] = b64decode(message["body"]).decode()  # a plain task's
    bench.run(message)
    assert loads == [5, 5]
    assert by_job(5) == 2


def test_unknown_loader_fails_its_job_with_the_way_out(env: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="no loader 'x' is known to this worker: name its module in HOLDFAST_INCLUDE"):
        tasks.refresh("x", [], "0123456789abcdef")


def test_loaders_of_our_own_are_known_to_every_worker() -> None:
    assert {"statistics.activity", "statistics.backlog"} <= set(loaders())


def test_async_values_are_warmed_on_one_connection_that_is_closed(env: dict[str, str], cache: Redis) -> None:
    @cached(ttl=1, name="test.async_planned", warm=[(n,) for n in range(5)])
    async def slow(n: int) -> int:
        return n

    before = cache.info("stats")["total_connections_received"]
    clients = cache.info("clients")["connected_clients"]
    assert sum(report.advanced and report.key.startswith("test.async_planned") for report in warm(pause=lambda _: None)) == 5
    assert cache.info("stats")["total_connections_received"] - before < 5
    eventually(lambda: cache.info("clients")["connected_clients"] <= clients + 3)
