"""Flags as rules: what each decides, that a roll-out is stable and even, and what is no rule."""

from __future__ import annotations

import pytest

from worker.errors import InvalidLive
from worker.live import Snapshot, flag
from worker.live.flags import decode, place_of


def test_flag_that_is_off_is_on_for_whom_it_allows_alone() -> None:
    rule = flag("f", on=False, allow={"caller": ["acme"]})
    assert rule.is_on("k", {"caller": "acme"})
    assert not rule.is_on("k", {"caller": "other"})
    assert not rule.is_on("k")


def test_denied_is_off_also_where_it_is_allowed() -> None:
    rule = flag("f", on=True, allow={"caller": ["acme"]}, deny={"task": ["t"], "key": ["k7"]})
    assert not rule.is_on("k", {"caller": "acme", "task": "t"})
    assert not rule.is_on("k7")
    assert rule.is_on("k", {"caller": None, "task": "u"})


def test_roll_out_is_even_and_keeps_whom_it_had() -> None:
    keys = [f"user-{n}" for n in range(20_000)]
    few, more = flag("f", share=1000), flag("f", share=3000)
    with_few = {key for key in keys if few.is_on(key)}
    with_more = {key for key in keys if more.is_on(key)}
    assert with_few < with_more
    assert 1800 < len(with_few) < 2200
    assert 5700 < len(with_more) < 6300
    other = {key for key in keys if flag("g", share=1000).is_on(key)}
    assert len(with_few & other) < 350, "another flag takes others"


def test_place_in_a_roll_out_is_the_same_in_every_release() -> None:
    assert [place_of("new-report", f"user-{n}") for n in range(4)] == [6459, 7626, 6633, 7060]


def test_nothing_and_all_of_a_roll_out() -> None:
    assert not any(flag("f", share=0).is_on(str(n)) for n in range(1000))
    assert all(flag("f", share=10_000).is_on(str(n)) for n in range(1000))


@pytest.mark.parametrize(
    ("rule", "restricts", "for_all"),
    [
        ({}, False, False), ({"on": False}, True, True), ({"share": 10_000}, False, False), ({"share": 0}, True, True),
        ({"on": False, "allow": {"caller": ["a"]}}, True, False), ({"deny": {"caller": ["a"]}}, True, False),
    ],
)  # fmt: skip
def test_flag_knows_whether_it_restricts(rule: dict, restricts: bool, for_all: bool) -> None:
    assert (flag("f", **rule).restricts, flag("f", **rule).is_off_for_all) == (restricts, for_all)


def test_snapshot_is_read_back_as_it_was_written() -> None:
    listed = {"allow": {"caller": ["x", "y"]}, "deny": {"key": ["k"]}}
    rules = [flag("a", on=False, revision=3), flag("b:ü", share=10, revision=7, **listed)]
    snapshot = Snapshot(7, {rule.name: rule for rule in rules})
    assert decode(snapshot.encode()) == snapshot


def test_flag_nobody_set_is_as_the_caller_says() -> None:
    assert Snapshot().is_on("f", default=True)
    assert not Snapshot().is_on("f")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": ""}, "flag: ''"), ({"name": "a\n"}, "printable"), ({"name": "x" * 256}, "1 to 255"),
        ({"name": "f", "on": 1}, "flag f: on: 1 is neither"), ({"name": "f", "share": 10_001}, "share: 10001"),
        ({"name": "f", "share": 1.5}, "share: 1.5"), ({"name": "f", "allow": {"caller": []}}, "allow: 'caller' lists 0"),
        ({"name": "f", "deny": {"": ["a"]}}, "deny: ''"),
        ({"name": "f", "deny": {"caller": "acme"}}, "deny: 'caller' lists 0"),
    ],
)  # fmt: skip
def test_what_is_no_rule_is_refused_by_name(given: dict, told: str) -> None:
    with pytest.raises(InvalidLive, match=told.replace("(", r"\(")):
        flag(**given)


@pytest.mark.parametrize("text", [b"", b"[]", b'{"version": 1}', b'{"version": 1, "flags": [{"name": ""}]}'])
def test_kept_snapshot_that_is_broken_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidLive):
        decode(text)
