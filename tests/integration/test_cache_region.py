"""The blocking region, promise by promise, on a real Redis; the asynchronous one where it differs is in test_cache_aio."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from msgspec import defstruct
from redis import Redis

from tests.harness import eventually
from worker import store
from worker.cache import MISSING, LocalCache, Region, cached, declared, hot, invalidate, loaders, set_refresher, steps, writes
from worker.cache import background as refreshing
from worker.cache import terms as cache_terms
from worker.cache.reads import Seen
from worker.cache.waits import News, Waits
from worker.errors import CacheConfigError, CacheKeyError, CacheValueError, LoadFailed
from worker.store import keys
from worker.store.client import IDLE
from worker.store.listening import _readable as select_readable
from worker.telemetry import CACHE_BYPASSES, CACHE_FAILURES, CACHE_LOADS, CACHE_MISSES, CACHE_REFUSED, CACHE_STALE, CACHE_WAITS

pytestmark = pytest.mark.usefixtures("env", "patient")


@pytest.fixture
def patient(conf: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Redis, and tests between two loads, time on a busy machine; what happens without is in test_cache_outages."""
    conf(cache_timeout_ms=2000)
    monkeypatch.setattr(cache_terms, "_BACK_OFF_MS", 1000)


class Source:
    """What is loaded: counts its loads, can be slow, and can fail."""

    def __init__(self, value: Any = 1) -> None:
        self.value, self.loads = value, 0
        self.error: Exception | None = None
        self.may_end = threading.Event()
        self.may_end.set()
        self.began = threading.Event()

    def __call__(self) -> Any:
        self.loads += 1
        value, error = self.value, self.error
        self.began.set()
        assert self.may_end.wait(20)
        if error:
            raise error
        return value

    def stop(self) -> None:
        """Let the next loads begin and not end."""
        self.may_end.clear()
        self.began.clear()


@pytest.fixture
def source() -> Iterator[Source]:
    source = Source()
    yield source
    source.may_end.set()


class Asking(threading.Thread):
    """One caller in a thread of its own."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self.answer: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._ask()
        except Exception as exc:
            self.answer = exc

    def result(self) -> Any:
        self.join(20)
        assert not self.is_alive()
        return self.answer


def counted(counter: Any, *labels: str) -> float:
    return float(counter.labels(*labels)._value.get())


# ---- reading


def test_value_is_loaded_once_and_then_found(source: Source) -> None:
    region = Region("r", ttl=60)
    assert region.get("k") is MISSING
    assert [region.get_or_load("k", source) for _ in range(5)] == [1] * 5
    assert region.get("k") == 1
    assert source.loads == 1


def test_every_key_has_a_life(cache: Redis, source: Source) -> None:
    region = Region("r", ttl=60)
    region.get_or_load("k", source, tags=["t"])
    region.write_through("w", 1, version=3)
    source.error = RuntimeError()
    with pytest.raises(RuntimeError):
        region.get_or_load("bad", source)
    source.error = None
    hot._ranking.count("name", (1,))
    hot.flush()
    names = cache.keys()
    assert len(names) == 6
    assert [name for name in names if cache.pttl(name) <= 0] == []


def test_absence_is_cached_for_its_own_time(cache: Redis, source: Source) -> None:
    source.value = None
    region = Region("r", ttl=600, negative_ttl=0.2)
    assert region.get_or_load("k", source) is None
    assert region.get("k") is None
    assert cache.pttl(keys.cache_entry("r:k")) <= 200
    assert eventually(lambda: region.get("k") is MISSING, 2)


def test_absence_is_not_cached_where_it_is_not_wanted(source: Source) -> None:
    source.value = None
    region = Region("r", ttl=600, negative_ttl=0)
    assert region.get_or_load("k", source) is None
    assert eventually(lambda: region.get("k") is MISSING, 1)
    region.get_or_load("k", source)
    assert source.loads == 2


@dataclass
class Old:
    name: str


@dataclass
class New:
    name: str
    age: int


def test_changed_type_or_version_is_a_miss(source: Source) -> None:
    source.value = Old("a")
    Region("r", ttl=60, type=Old).get_or_load("k", source)
    assert Region("r", ttl=60, type=New).get("k") is MISSING
    assert Region("r", ttl=60, type=New).get_or_load("k", lambda: New("a", 1)) == New("a", 1)
    assert Region("r", ttl=60, type=New, version=2).get("k") is MISSING


@pytest.mark.parametrize("raw", [b"", b"x", b"\xc1" * 30, b"\xc1\x00\x01\x09" + b"\xff" * 60])
def test_bytes_that_are_no_entry_are_a_miss_and_are_replaced(cache: Redis, source: Source, raw: bytes) -> None:
    region = Region("r", ttl=60)
    cache.set(keys.cache_entry("r:k"), raw, px=60_000)
    assert region.get("k") is MISSING
    assert region.get_or_load("k", source) == region.get("k") == 1


def test_entry_that_would_never_end_is_a_miss_and_is_replaced(cache: Redis, source: Source) -> None:
    region = Region("r", ttl=60)
    region.get_or_load("k", source)
    cache.persist(keys.cache_entry("r:k"))
    region.get_or_load("k", source)
    assert source.loads == 2
    assert cache.pttl(keys.cache_entry("r:k")) > 0


def test_key_that_holds_something_else_does_not_stop_the_caller(cache: Redis, source: Source) -> None:
    cache.lpush(keys.cache_entry("r:k"), "not ours")
    assert Region("r", ttl=60).get_or_load("k", source) == 1


def test_own_caller_gets_what_a_hit_would_give(source: Source) -> None:
    source.value = {"a": (1, 2)}
    region = Region("r", ttl=60)
    assert region.get_or_load("k", source) == region.get_or_load("k", source) == {"a": [1, 2]}


def test_loader_that_returns_a_coroutine_is_refused_by_name() -> None:
    async def load_user() -> int:
        return 1

    with pytest.raises(CacheValueError, match=r"load_user.*coroutine.*AsyncRegion"):
        Region("r", ttl=60).get_or_load("k", load_user)


@pytest.mark.parametrize(
    ("error", "says", "ask"),
    [
        (CacheKeyError, "tags='news'", lambda region: region.get_or_load("k", int, tags="news")),
        (CacheKeyError, "tag 7", lambda region: region.invalidate_tags(7)),
        (CacheKeyError, "key part", lambda region: region.get(("a", []))),
        (CacheKeyError, "keys='abc'", lambda region: region.get_many_or_load("abc", dict)),
        (CacheConfigError, "ttl=0", lambda region: region.get_or_load("k", int, 0)),
        (CacheValueError, "object", lambda region: region.set("k", object())),
        (CacheValueError, "object", lambda region: region.get_or_load("k", object)),
        (CacheValueError, "version=-1", lambda region: region.write_through("k", 1, version=-1)),
        (CacheValueError, "max_bytes=100", lambda region: region.set("k", "x" * 200)),
    ],
)
def test_bad_input_is_refused_by_name(error: type[Exception], says: str, ask: Callable[[Region], Any]) -> None:
    with pytest.raises(error, match=says):
        ask(Region("r", ttl=60, max_bytes=100))


# ---- one load


def test_callers_wait_for_the_one_that_loads(source: Source) -> None:
    region = Region("waits", ttl=60)
    before = counted(CACHE_WAITS, "waits")
    source.stop()
    callers = [Asking(lambda: region.get_or_load("k", source)) for _ in range(20)]
    eventually(lambda: counted(CACHE_WAITS, "waits") - before >= 19)  # one that is woken for nothing waits again
    source.may_end.set()
    assert [caller.result() for caller in callers] == [1] * 20
    assert source.loads == 1


def test_slow_loader_keeps_its_lease(source: Source) -> None:
    region = Region("r", ttl=60, lease_s=1)
    source.stop()
    first = Asking(lambda: region.get_or_load("k", source))
    source.began.wait(5)
    second = Asking(lambda: region.get_or_load("k", source))
    time.sleep(2)
    source.may_end.set()
    assert (first.result(), second.result(), source.loads) == (1, 1, 1)


def test_caller_that_waited_long_enough_loads_for_itself(source: Source) -> None:
    region = Region("r", ttl=60, max_wait_s=0.3)
    source.stop()
    first = Asking(lambda: region.get_or_load("k", source))
    source.began.wait(5)
    assert region.get_or_load("k", lambda: 2) == 2
    source.may_end.set()
    assert first.result() == 1


def test_failed_load_is_raised_to_all_and_backs_off_longer_each_time(source: Source) -> None:
    region = Region("fails", ttl=60)
    waits = counted(CACHE_WAITS, "fails")
    source.error = RuntimeError("no database")
    source.stop()
    first = Asking(lambda: region.get_or_load("k", source))
    source.began.wait(5)
    second = Asking(lambda: region.get_or_load("k", source))
    eventually(lambda: counted(CACHE_WAITS, "fails") > waits)
    source.may_end.set()
    assert first.result() is source.error
    told = second.result()
    assert isinstance(told, LoadFailed)
    assert "RuntimeError: no database" in str(told)
    assert told.key == "fails:k"
    assert 0 < told.retry_after <= 1.0
    with pytest.raises(LoadFailed):
        region.get_or_load("k", source)
    assert source.loads == 1, "it did not back off"
    eventually(lambda: isinstance(Asking(lambda: region.get_or_load("k", source)).result(), RuntimeError))
    with pytest.raises(LoadFailed) as caught:
        region.get_or_load("k", source)
    assert 1.0 < caught.value.retry_after <= 2.0
    assert counted(CACHE_FAILURES, "fails", "load") == source.loads == 2


def test_recovered_loader_is_asked_again_after_its_back_off_or_an_invalidation(source: Source) -> None:
    region = Region("r", ttl=60)
    source.error = RuntimeError()
    with pytest.raises(RuntimeError):
        region.get_or_load("k", source)
    source.error = None
    assert region.invalidate("k")
    assert region.get_or_load("k", source) == 1


def test_interrupted_load_gives_its_lease_back() -> None:
    region = Region("r", ttl=60)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        region.get_or_load("k", interrupted)
    begun = time.monotonic()
    assert region.get_or_load("k", lambda: 1) == 1
    assert time.monotonic() - begun < 2.5, "the lease was left to run out"


# ---- nothing stale after an invalidation


@pytest.mark.parametrize("how", ["key", "tag", "both by name", "write"])
def test_load_that_was_overtaken_is_neither_stored_nor_joined(source: Source, cache: Redis, how: str) -> None:
    region = Region(f"late {how}", ttl=60)
    refused = counted(CACHE_REFUSED, region.name)
    source.stop()
    reader = Asking(lambda: region.get_or_load("k", source, tags=["t"]))
    source.began.wait(5)
    assert {
        "key": lambda: region.invalidate("k"),
        "tag": lambda: region.invalidate_tags("t"),
        "both by name": lambda: invalidate([region.key("k")], ["t"]),
        "write": lambda: region.write_through("k", 2, tags=["t"]),
    }[how]()
    assert region.get_or_load("k", lambda: 2, tags=["t"]) == 2, "it joined a load that began before the invalidation"
    source.may_end.set()
    assert reader.result() == 1, "its read began before the invalidation"
    assert region.get("k", ["t"]) == region.get("k") == 2
    assert counted(CACHE_REFUSED, region.name) == refused + 1


def test_tag_forgets_all_that_is_under_it_and_nothing_else(source: Source) -> None:
    region = Region("r", ttl=60)
    for key, tags in (("a", ["x"]), ("b", ["x", "y"]), ("c", ["y"]), ("d", [])):
        region.get_or_load(key, source, tags=tags)
    assert region.invalidate_tags("x")
    assert [region.get(key) for key in "abcd"] == [MISSING, MISSING, 1, 1]
    assert region.get_or_load("b", lambda: 2) == 2, "found though a tag the caller did not name was invalidated"


def test_entry_under_other_tags_than_the_caller_names_is_a_miss(source: Source) -> None:
    region = Region("r", ttl=60)
    region.get_or_load("k", source, tags=["x"])
    assert region.get("k", ["y"]) is MISSING
    region.get_or_load("k", source, tags=["y"])
    assert source.loads == 2


def test_tag_whose_version_is_gone_is_a_miss(cache: Redis, source: Source) -> None:
    region = Region("r", ttl=60)
    region.get_or_load("k", source, tags=["x"])
    cache.delete(keys.cache_tag("x"))
    assert region.get("k") is MISSING
    assert region.get_or_load("k", source, tags=["x"]) == region.get("k") == 1


def test_older_write_does_not_replace_a_newer_one(source: Source) -> None:
    region = Region("r", ttl=60)
    assert region.write_through("k", "v7", version=7)
    assert not region.write_through("k", "v6", version=6)
    assert region.get("k") == "v7"
    region.invalidate("k")
    assert not region.write_through("k", "v6", version=6), "an invalidation is no reason to believe an older write"
    assert region.write_through("k", "v7 again", version=7)
    assert region.write_through("k", "no version")
    assert region.get("k") == "no version"


# ---- early, stale, and stale for want of better


def test_value_is_refreshed_before_it_runs_out_by_one_caller_while_nobody_waits() -> None:
    region = Region("early", ttl=2.0, jitter=0, beta=3)  # and so 0.7 s to spare for a busy machine
    loads: list[tuple[float, float]] = []

    def load() -> int:
        began = time.monotonic()
        time.sleep(0.2)
        loads.append((began, time.monotonic()))
        return len(loads)

    region.get_or_load("k", load)
    misses, others = counted(CACHE_MISSES, "early"), counted(CACHE_LOADS, "early") - 1
    until = time.monotonic() + 4.5
    while time.monotonic() < until:
        region.get_or_load("k", load)
        time.sleep(0.001)
    assert counted(CACHE_MISSES, "early") == misses, "a caller found nothing: it loaded itself, or waited"
    assert counted(CACHE_LOADS, "early") - others == len(loads)
    assert 3 <= len(loads) <= 6, "two seconds each, less 0.9 s at most"
    assert all(ended < next_began for (_, ended), (next_began, _) in pairwise(loads)), "two refreshed at a time"
    as_thought = [next_began - began for (began, ended), (next_began, _) in pairwise(loads) if ended - began < 0.3]
    assert min(as_thought) > 0.9, "far too early"  # what took longer to load may be refreshed earlier


def test_value_is_never_refreshed_early_without_beta(source: Source) -> None:
    region = Region("r", ttl=2, jitter=0, beta=0)
    region.get_or_load("k", lambda: time.sleep(1) or 1)  # with a beta of 1 early would be half a second after it
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        assert region.get_or_load("k", source) == 1
    assert source.loads == 0


def test_stale_value_is_served_while_one_caller_refreshes_it(source: Source) -> None:
    region = Region("swr", ttl=0.2, jitter=0, stale_while_revalidate=30)
    region.get_or_load("k", source)
    source.value = 2
    source.stop()
    eventually(lambda: counted(CACHE_STALE, "swr") or (region.get("k") and False))
    assert [region.get_or_load("k", source) for _ in range(20)] == [1] * 20
    assert source.began.wait(5)
    assert source.loads == 2
    source.may_end.set()
    assert eventually(lambda: region.get("k") == 2)


def test_value_past_its_time_is_not_found_without_a_loader(source: Source) -> None:
    region = Region("past", ttl=0.1, jitter=0, max_stale=60)
    region.get_or_load("k", source)
    time.sleep(0.15)
    before = counted(CACHE_BYPASSES, "past")
    assert region.get("k") is MISSING
    assert counted(CACHE_BYPASSES, "past") == before


def test_value_past_its_time_is_served_when_the_load_fails_and_only_then(source: Source) -> None:
    region = Region("spare", ttl=0.2, jitter=0, max_stale=4)
    region.get_or_load("k", source)
    time.sleep(0.3)
    source.error = RuntimeError("no database")
    before = counted(CACHE_STALE, "spare")
    assert [region.get_or_load("k", source) for _ in range(5)] == [1] * 5
    assert counted(CACHE_STALE, "spare") == before + 5
    assert source.loads < 5, "each caller tried"
    assert isinstance(eventually(lambda: failure(lambda: region.get_or_load("k", source)), 10), RuntimeError | LoadFailed)
    source.error = None
    source.value = 2
    assert eventually(lambda: region.get_or_load("k", source) == 2)


def failure(ask: Callable[[], Any]) -> Exception | None:
    answer = Asking(ask).result()
    return answer if isinstance(answer, Exception) else None


def test_invalidated_value_is_not_served_when_the_load_fails(source: Source) -> None:
    region = Region("r", ttl=0.2, jitter=0, max_stale=60)
    region.get_or_load("k", source, tags=["t"])
    region.invalidate_tags("t")
    source.error = RuntimeError()
    with pytest.raises(RuntimeError):
        region.get_or_load("k", source, tags=["t"])


def test_refresh_that_fails_is_not_tried_with_each_read(source: Source) -> None:
    region = Region("r", ttl=0.2, jitter=0, stale_while_revalidate=30)
    region.get_or_load("k", source)
    time.sleep(0.25)
    source.error = RuntimeError()
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        assert region.get_or_load("k", source) == 1
    assert 2 <= source.loads <= 3, "at once, and after a second"


# ---- refreshing on purpose


def test_refresh_tells_whether_the_fill_time_really_advanced(source: Source, cache: Redis) -> None:
    region = Region("r", ttl=60)
    report = region.refresh("k", source)
    assert (report.key, report.advanced, report.outcome, report.age_before_s) == ("r:k", True, "filled", None)
    time.sleep(1)
    report = region.refresh("k", source)
    assert report.advanced
    assert report.age_before_s >= 1 > report.age_after_s
    source.error = RuntimeError("no database")
    report = region.refresh("k", source)
    assert (report.advanced, report.outcome, report.error) == (False, "failed", "RuntimeError: no database")
    assert "no database" in region.refresh("k", source).error, "while it backs off"
    assert region.get("k") == 1


def test_refresh_that_was_overtaken_or_is_not_the_only_one_has_not_advanced(source: Source) -> None:
    region = Region("r", ttl=60)
    source.stop()
    first = Asking(lambda: region.refresh("k", source))
    source.began.wait(5)
    assert (region.refresh("k", source).outcome, source.loads) == ("held", 1)
    region.invalidate("k")
    source.may_end.set()
    assert (first.result().advanced, first.result().outcome) == (False, "refused")
    assert region.get("k") is MISSING


# ---- many keys


def test_many_keys_are_loaded_in_one_batch_and_found_afterwards() -> None:
    region = Region("r", ttl=60)
    asked: list[list[Any]] = []

    def load(wanted: list[Any]) -> dict[Any, int]:
        asked.append(wanted)
        return {key: len(key) for key in wanted if key != "none"}

    region.set("bb", 20)
    assert region.get_many_or_load(["a", "bb", "none", "a"], load, tags=[]) == {"a": 1, "bb": 20, "none": None}
    assert list(region.get_many_or_load(["none", "ccc", "a"], load).items()) == [("none", None), ("ccc", 3), ("a", 1)]
    assert asked == [["a", "none"], ["ccc"]]
    assert region.get_many_or_load([], load) == {}


def test_many_keys_under_tags_are_forgotten_with_them() -> None:
    region = Region("r", ttl=60)
    region.get_many_or_load(["a", "b"], lambda wanted: dict.fromkeys(wanted, 1), tags=["t"])
    region.invalidate_tags("t")
    assert region.get_many_or_load(["a", "b"], lambda wanted: dict.fromkeys(wanted, 2), tags=["t"]) == {"a": 2, "b": 2}


def test_batches_that_overlap_load_each_key_once(source: Source) -> None:
    region = Region("r", ttl=60)
    asked: list[str] = []

    def load(wanted: list[str]) -> dict[str, int]:
        asked.extend(wanted)
        source()
        return dict.fromkeys(wanted, 1)

    source.stop()
    first = Asking(lambda: region.get_many_or_load(["a", "b", "c"], load))
    source.began.wait(5)
    second = Asking(lambda: region.get_many_or_load(["c", "b", "d"], load))
    third = Asking(lambda: region.get_or_load("a", source))
    eventually(lambda: "d" in asked)
    source.may_end.set()
    assert first.result() == dict.fromkeys("abc", 1)
    assert second.result() == dict.fromkeys("cbd", 1)
    assert third.result() == 1
    assert sorted(asked) == ["a", "b", "c", "d"]


def test_batch_that_fails_backs_off_for_each_of_its_keys(source: Source) -> None:
    region = Region("r", ttl=60)
    region.set("there", 1)
    source.error = RuntimeError()
    with pytest.raises(RuntimeError):
        region.get_many_or_load(["there", "a", "b"], lambda wanted: source())
    for key in "ab":
        with pytest.raises(LoadFailed):
            region.get_or_load(key, lambda: 1)


# ---- the decorator


def test_function_is_read_through_the_cache_and_its_values_are_typed() -> None:
    loads: list[int] = []

    @cached(key="{number}", tags=("book:{number}",), ttl=60, name="test.book")
    def book(number: int) -> Old | None:
        loads.append(number)
        return Old(f"book {number}") if number else None

    assert book(7) == book(number=7) == book.get(7) == Old("book 7")
    assert (book(0), book(0), loads) == (None, None, [7, 0])
    assert book.invalidate(7)
    assert book.get(7) is MISSING
    assert book.refresh(7).advanced
    assert book.resume(["7"]).advanced, "arguments that went through JSON"
    assert loads == [7, 0, 7, 7]
    assert invalidate([], book.tags(7))
    assert book.get(7) is MISSING
    with pytest.raises(CacheKeyError, match=r"test\.book: arguments \['x'\]"):
        book.resume(["x"])


def test_early_refresh_is_handed_to_a_job_with_its_lease() -> None:
    sent: list[tuple[str, list[Any], str]] = []
    set_refresher(lambda name, args, token: sent.append((name, args, token)))
    loads: list[int] = []

    @cached(key="{number}", ttl=0.2, jitter=0, stale_while_revalidate=60, refresh="job", name="test.job")
    def figure(number: int) -> int:
        loads.append(number)
        return len(loads)

    figure(7)
    time.sleep(0.25)
    for _ in range(10):
        assert figure(7) == 1
    eventually(lambda: sent)
    for _ in range(10):
        assert figure(7) == 1
    ((name, args, token),) = sent
    assert (name, args) == ("test.job", [7])
    assert figure.refresh(7).outcome == "held", "the lease is the job's"
    assert loaders()[name].resume(args, token).advanced
    assert figure.get(7) == 2


# ---- the ranking of reads


def test_most_read_arguments_are_ranked_across_processes_and_forgotten(cache: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot, "SAMPLE", 1)
    monkeypatch.setattr(hot, "MEMBERS", 3)
    hot.flush()
    cache.delete(keys.cache_hot())
    for args, reads in ((("a",), 50), (("b", 1), 30), (("c",), 20), (("d",), 10)):
        for _ in range(reads):
            hot.note("test.rank", args)
    hot.note("test.rank", (object,))
    hot.flush()
    found = hot.top(10)
    assert [(one.name, one.args, one.reads) for one in found] == [
        ("test.rank", ["a"], 50), ("test.rank", ["b", 1], 30), ("test.rank", ["c"], 20)
    ]  # fmt: skip
    assert cache.pttl(keys.cache_hot()) > 0
    assert hot.decay(0.5) == 3
    assert [one.reads for one in hot.top(2)] == [25, 15]
    assert cache.pttl(keys.cache_hot()) > 0
    assert hot.decay(0.01) == 0
    assert (hot.top(10), hot.top(0)) == ([], [])


def test_refreshes_of_one_process_are_few() -> None:
    refreshes = refreshing.Refreshes()
    assert [refreshes.try_begin(f"k{n}") for n in range(9)] == [True] * 8 + [False]
    refreshes.end("k0", busy_s=60)
    assert not refreshes.try_begin("k0")
    assert refreshes.try_begin("k9")


@pytest.mark.parametrize("message", [b"", b"k\xff", b"t"])
def test_odd_message_leaves_the_memory_of_the_process_in_step(cache: Redis, message: bytes) -> None:
    region = Region("odd", ttl=60, local=LocalCache())
    region.get_or_load("k", lambda: 1)
    eventually(lambda: region.get_or_load("k", lambda: 1) and region.local.held == 1)
    cache.publish(keys.cache_drops(), message)
    cache.delete(keys.cache_entry("odd:k"))
    cache.publish(keys.cache_drops(), b"kodd:k")
    eventually(lambda: region.get("k") is MISSING)


def test_listener_that_meets_an_unknown_error_begins_anew(cache: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    region = Region("anew", ttl=60, local=LocalCache())
    eventually(lambda: region.get_or_load("k", lambda: 1) and region.local.held == 1)
    with monkeypatch.context() as patched:
        patched.setattr(Waits, "heard", lambda *_: 1 / 0)
        cache.publish(keys.cache_drops(), b"kother")
        eventually(lambda: not region.local.is_open)
    eventually(lambda: region.get_or_load("k", lambda: 1) and region.local.held == 1)


def test_listener_hears_on_a_descriptor_beyond_1023() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.fail("this test needs 2048 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert select_readable([taken[-1]], 0) == {taken[-1]}
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_write_that_was_held_up_on_its_way_is_not_stored(cache: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    region = Region("late", ttl=60)
    assert region.write_through("k", 1)
    sent: list[Any] = []
    command = writes._put.command
    monkeypatch.setattr(writes._put, "command", lambda *args: sent.append(args) or command(*args))
    assert region.write_through("k", 2)
    names, args = sent[0]
    args[6] = int(args[6]) - 10  # as if it had been sent so many seconds ago
    assert region.invalidate("k")
    region.get_or_load("k", lambda: 3)
    assert store.cache().ask([command(names, args)]) == [0]
    assert region.get("k") is MISSING


def test_handed_over_lease_that_was_invalidated_is_not_revived() -> None:
    region = Region("twice", ttl=60)
    token = "a" * 16
    started, go = threading.Event(), threading.Event()

    def old() -> str:
        started.set()
        go.wait(10)
        return "old"

    first = threading.Thread(target=lambda: region.refresh("k", old, token=token))
    first.start()
    started.wait(10)
    assert region.invalidate("k")

    def new() -> str:
        go.set()
        first.join(10)
        assert region.get("k") is MISSING
        return "new"

    assert region.refresh("k", new, token=token).advanced
    assert region.get("k") == "new"


def test_value_read_as_another_type_is_not_kept_in_memory() -> None:
    region = Region("types", ttl=60, type=int, local=LocalCache())
    eventually(lambda: region.get_or_load("other", lambda: 1) and region.local.is_open)
    assert region.get_or_load("k", lambda: "a", type=str) == "a"
    assert region.get_or_load("k", lambda: 2) == 2


def test_what_another_region_kept_in_memory_is_loaded_where_it_does_not_fit() -> None:
    local = LocalCache()
    words, numbers = Region("shared", ttl=60, type=str, local=local), Region("shared", ttl=60, type=int, local=local)
    eventually(lambda: words.get_or_load("k", lambda: "a") and local.held == 1)
    assert numbers.get_or_load("k", lambda: 2) == 2


def test_any_number_of_tags_is_forgotten_at_once() -> None:
    region = Region("tags", ttl=60)
    region.set("k", 1, tags=["t39"])
    assert region.invalidate_tags(*[f"t{n}" for n in range(40)])
    assert region.get("k") is MISSING


def test_keys_that_only_python_takes_for_one_are_refused() -> None:
    region = Region("equal", ttl=60)
    with pytest.raises(CacheKeyError, match="True"):
        region.get_many_or_load([(1,), (True,)], lambda keys: {})
    with pytest.raises(CacheKeyError, match="list"):
        region.get_many_or_load([("a", [1])], lambda keys: {})  # type: ignore[list-item]


def test_loader_of_many_that_returns_a_list_is_told_so() -> None:
    with pytest.raises(CacheValueError, match="returned a list: return a dict"):
        Region("listed", ttl=60).get_many_or_load(["a"], lambda keys: [1])  # type: ignore[arg-type, return-value]


def test_value_that_cannot_be_stored_spares_the_other_keys_of_its_batch() -> None:
    region = Region("one", ttl=60)
    with pytest.raises(CacheValueError, match="one:b"):
        region.get_many_or_load(["a", "b", "c"], lambda keys: {"a": 1, "b": object(), "c": 3})
    assert (region.get("a"), region.get("b"), region.get("c")) == (1, MISSING, 3)


def test_codecs_of_types_made_on_the_way_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declared, "_MOST_CODECS", 8)
    region = Region("codecs", ttl=60)
    for n in range(20):
        region.get("k", type=defstruct(f"Made{n}", ["a"]))
    assert len(region._codecs) <= 8


def test_news_that_is_no_entry_is_asked_for_again() -> None:
    region = Region("news", ttl=60)
    call = region._call("news:k", ())
    cut_off = b"\xc1\x00\x01"
    assert steps._heard(call, Seen(None, b"", ()), News(entry=cut_off)) is MISSING


def test_connections_of_a_rush_are_not_kept() -> None:
    role = store.cache()
    loans = [role.use() for _ in range(IDLE + 20)]
    with ExitStack() as stack:
        for loan in loans:
            stack.enter_context(loan).ping()
    assert len(role.idle) <= IDLE


def test_back_off_is_at_most_what_the_region_says(cache: Redis) -> None:
    region = Region("soon", ttl=60, max_back_off=0.5)
    cache.set(keys.cache_lease("soon:k"), b"!7:60000:Gone: away", px=75_000)  # left on other terms
    with pytest.raises(ZeroDivisionError):
        region.get_or_load("k", lambda: 1 / 0)
    with pytest.raises(LoadFailed) as caught:
        region.get_or_load("k", lambda: 1)
    assert 0 < caught.value.retry_after <= 0.5
