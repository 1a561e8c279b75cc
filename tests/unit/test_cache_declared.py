"""What could not work is refused where it is declared, and nothing that is shared by one process is given out twice."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from worker.cache import AsyncRegion, LocalCache, Region, cached, hot, loaders
from worker.cache.signals import Flights, Signal, Slots
from worker.errors import CacheConfigError, CacheKeyError


@pytest.mark.parametrize("front", [Region, AsyncRegion])
@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), True, "60", None, timedelta(0), 1e12])
def test_ttl_that_is_no_time_is_refused_by_name(front: type, ttl: Any) -> None:
    with pytest.raises(CacheConfigError, match="ttl="):
        front("r", ttl=ttl)


def test_region_without_a_ttl_is_refused() -> None:
    with pytest.raises(CacheConfigError, match="region 'r' has no ttl"):
        Region("r")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""}, {"name": "a:b"}, {"version": 256}, {"version": True}, {"jitter": 0.6}, {"beta": -1}, {"lease_s": 0},
        {"negative_ttl": -1}, {"stale_while_revalidate": "1"}, {"max_stale": None}, {"max_wait_s": 0}, {"max_bytes": 0},
        {"compress_over": -1},
    ],
    ids=str,
)  # fmt: skip
def test_term_that_cannot_work_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(CacheConfigError, match=next(iter(wrong)) + "="):
        Region(**{"name": "r", "ttl": 1, **wrong})


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": 1.5}, {"ttl_s": 0}, {"ttl_s": float("nan")}], ids=str)
def test_layer_in_memory_that_cannot_work_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(CacheConfigError, match=next(iter(wrong)) + "="):
        LocalCache(**wrong)


def test_life_of_an_entry_holds_its_stale_time_and_lives_differ() -> None:
    terms = Region("r", ttl=10, stale_while_revalidate=timedelta(seconds=5), max_stale=20).terms
    lives = [terms.life_of(10, False) for _ in range(200)]
    assert all(9000 <= fresh <= 11000 and life == fresh + 20_000 for fresh, life in lives)
    assert len(set(lives)) > 100
    assert terms.life_of(10, True) == (5000, 5000)


# ---- the decorator


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "has no ttl"),
        ({"ttl": 0}, "ttl=0"),
        ({"ttl": 1, "key": "{a}"}, r"lacks \{b\}"),
        ({"ttl": 1, "key": "{a}:{c}"}, r"\{c\} is not a parameter"),
        ({"ttl": 1, "key": "{a}:{b:>3}"}, r"\{b\} is not a parameter"),
        ({"ttl": 1, "key": "{a"}, "key"),
        ({"ttl": 1, "key": "u-{a}-{b}"}, "put a colon between one parameter and the next"),
        ({"ttl": 1, "key": "{b}{a}"}, "put a colon"),
        ({"ttl": 1, "tags": ("x:{c}",)}, r"tag .*\{c\} is not a parameter"),
        ({"ttl": 1, "tags": "x"}, "tags='x' is a str"),
        ({"ttl": 1, "refresh": "later"}, "refresh='later'"),
        ({"region": Region("r", ttl=1), "version": 2}, "version and region exclude each other"),
        ({"region": AsyncRegion("r", ttl=1)}, "give a Region"),
    ],
)
def test_decorator_that_cannot_work_is_refused_where_it_stands(options: dict[str, Any], says: str) -> None:
    with pytest.raises(CacheConfigError, match=says):

        @cached(**options)
        def both(a: int, b: int) -> int:
            return a + b


def test_function_whose_arguments_have_no_names_is_refused() -> None:
    with pytest.raises(CacheConfigError, match=r"\*rest"):

        @cached(ttl=1)
        def some(*rest: int) -> int:
            return len(rest)


def test_two_functions_of_one_name_are_refused() -> None:
    @cached(ttl=1, name="test.twice")
    def one() -> int:
        return 1

    assert loaders()["test.twice"] is one
    with pytest.raises(CacheConfigError, match=r"two functions are called 'test\.twice'"):

        @cached(ttl=1, name="test.twice")
        def two() -> int:
            return 2


def test_arguments_come_to_one_key_however_they_are_passed() -> None:
    @cached(key="{a}/:{b}", tags=("t:{a}",), ttl=1, name="test.keys", warm=lambda: [(1,), (2, "z")])
    def found(a: int, b: str = "x") -> int:
        return 0

    assert found.key(1) == found.key(a=1, b="x") == "test.keys:1/:x"
    assert found.key(1, "a:b") == "test.keys:1/:a%3Ab"
    assert found.tags(7) == ("t:7",)
    assert found.warm_plan() == [(1,), (2, "z")]
    with pytest.raises(CacheKeyError, match=r"test\.keys: key part \[1\] is a list"):
        found.key([1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        found.key()  # type: ignore[call-arg]


def test_argument_without_any_text_has_a_key_like_no_other() -> None:
    @cached(ttl=1, name="test.empty")
    def found(a: str) -> str:
        return a

    assert len({found.key(""), found.key("%e"), found.key("e")}) == 3


def test_keyword_only_parameters_are_part_of_the_key_and_survive_a_job() -> None:
    @cached(ttl=1, name="test.named")
    def found(a: int, *, b: int, c: int = 3) -> int:
        return a + b + c

    assert found.key(1, b=2) == found.resumed_key([1, 2]) == found.resumed_key(["1", 2, 3]) == "test.named:1:2:3"
    for wrong in ([1, "x"], [1, 2, 3, 4]):
        with pytest.raises(CacheKeyError, match=r"test\.named: arguments .* do not fit it"):
            found.resumed_key(wrong)


def test_moments_that_are_equal_and_told_otherwise_have_keys_of_their_own() -> None:
    @cached(ttl=1, name="test.moments")
    def found(at: datetime) -> str:
        return at.isoformat()

    noon = datetime(2024, 10, 27, 12, tzinfo=UTC)
    for same in (noon, noon.astimezone(timezone(timedelta(hours=1))), noon.astimezone(timezone(timedelta(hours=2)))):
        assert found.key(same) == "test.moments:" + same.isoformat().replace(":", "%3A")
    twice = datetime(2024, 10, 27, 2, 30)
    assert found.key(twice) != found.key(twice.replace(fold=1))


def test_arguments_that_a_check_refuses_never_reach_the_cache() -> None:
    def check(a: int, b: int) -> None:
        if a + b < 0:
            raise LookupError("too few")

    @cached(ttl=1, name="test.checked", check=check)
    def found(a: int, *, b: int = 1) -> int:
        return a

    assert found.key(1) == "test.checked:1:1"
    for ask in (found, found.key, found.get, found.refresh, found.invalidate):
        with pytest.raises(LookupError):
            ask(1, b=-5)  # type: ignore[operator]


def test_ranking_of_a_process_goes_on_counting_what_it_knows_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot, "_COUNTED", 2)
    ranking = hot.Ranking()
    ranking._thread = threading.current_thread()
    for number in (1, 2, 3, 1):
        ranking.count("x", (number,))
    assert ranking._counts == {("x", (1,)): 2 * hot.SAMPLE, ("x", (2,)): hot.SAMPLE}


# ---- what callers of one process share


def test_place_that_was_given_back_goes_to_who_asked_first() -> None:
    slots = Slots(1)
    first, second, third = slots.take(), slots.take(), slots.take()
    assert (first.done, second.done, third.done) == (True, False, False)
    slots.give(second)  # it went away without its turn
    slots.give(first)
    assert third.done
    slots.give(third)
    assert slots.take().done


def test_caller_joins_a_load_only_before_it_has_begun() -> None:
    flights = Flights()
    first, leads, before = flights.board("k")
    assert (leads, before) == (True, None)
    assert flights.board("k") == (first, False, None)
    flights.begin("k", first)
    second, leads, before = flights.board("k")
    assert second is not first
    assert (leads, before) == (True, first)
    flights.land("k", first, "value")
    assert first.value == "value"
    assert flights.board("k") == (second, False, None)


def test_signal_happens_once_and_wakes_all() -> None:
    signal = Signal()
    woken: list[bool] = []
    threads = [threading.Thread(target=lambda: woken.append(signal.wait(10))) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert not signal.wait(0.01)
    signal.set(1)
    signal.set(2)
    for thread in threads:
        thread.join()
    assert (woken, signal.value) == ([True] * 20, 1)


# ---- the layer in memory


def open_layer(size: int = 10) -> LocalCache:
    local = LocalCache(size, 60)
    local.open()
    return local


def test_layer_drops_keys_and_whatever_is_under_a_tag() -> None:
    local = open_layer()
    local.put("a", ["t"], (0, b"1"), 60, local.ticket())
    local.put("b", [], (0, b"2"), 60, local.ticket())
    assert (local.get("a"), local.get("b")) == ((0, b"1"), (0, b"2"))
    assert (local.get("a", ["t"]), local.get("b", ["t"])) == ((0, b"1"), None), "under tags it was not stored under"
    local.drop("tt")
    assert (local.get("a"), local.get("b")) == (None, (0, b"2"))
    local.drop("kb")
    assert local.get("b") is None


@pytest.mark.parametrize("name", ["ka", "tt"])
def test_layer_does_not_keep_what_was_dropped_while_it_was_read(name: str) -> None:
    local = open_layer()
    ticket = local.ticket()
    local.drop(name)
    local.put("a", ["t"], (0, b"old"), 60, ticket)
    local.put("b", [], (0, b"other"), 60, ticket)
    assert local.get("a") is None
    assert local.get("b") == (0, b"other")


def test_layer_gives_and_keeps_nothing_while_drops_may_be_missed() -> None:
    local = open_layer()
    ticket = local.ticket()
    local.put("a", [], (0, b"1"), 60, ticket)
    local.close()
    assert local.get("a") is None
    local.put("a", [], (0, b"1"), 60, local.ticket())
    local.open()
    local.put("a", [], (0, b"1"), 60, ticket)
    assert local.get("a") is None, "it was read before the layer was deaf"


def test_layer_forgets_which_drops_there_were_but_not_that_there_were() -> None:
    local = open_layer()
    ticket = local.ticket()
    local.drop("ka")
    for n in range(5000):
        local.drop(f"k{n}")
    local.put("a", [], (0, b"old"), 60, ticket)
    assert local.get("a") is None


def test_layer_holds_so_many_and_for_so_long() -> None:
    local = open_layer(2)
    for key in "abc":
        local.put(key, [], (0, b"1"), 60, local.ticket())
    local.put("d", [], (0, b"1"), 0, local.ticket())
    assert [local.get(key) is not None for key in "abcd"] == [False, True, True, False]
