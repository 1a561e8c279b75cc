"""Values come back as they went in, and what cannot is refused with its name; entries and keys likewise."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr

from worker.cache.codec import Codec, Undecodable
from worker.cache.entry import COMPRESSED, LEASE, NEGATIVE, Entry, Tag, build, digest, id_of, pack_tags, schema_of
from worker.cache.leases import new_lease
from worker.cache.names import full_key, tag_names
from worker.errors import CacheConfigError, CacheKeyError, CacheValueError


@dataclass
class Book:
    title: str
    pages: int


class Shelf(msgspec.Struct):
    books: list[Book]
    since: datetime


class Account(BaseModel):
    id: UUID
    tags: list[str] = []


ACCOUNT = Account(id=UUID(int=7), tags=["a"])


def codec(type: Any = Any, **other: Any) -> Codec:
    return Codec(type, **{"schema": 1, "max_bytes": 10_000, "compress_over": 1000, **other})


@pytest.mark.parametrize(
    ("type", "value"),
    [
        (Book, Book("a", 1)),
        (Shelf, Shelf([Book("a", 1)], datetime(2026, 1, 2, tzinfo=UTC))),
        (Account, ACCOUNT),
        (list[Account], [ACCOUNT, Account(id=UUID(int=8))]),
        (dict[str, Book | None], {"a": Book("a", 1), "b": None}),
        (tuple[int, ...], (1, 2)),
        (bytes, b"\x00\xff"),
        (Any, {"a": [1, 2.5, "x", None, True]}),
        (Any, None),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_value_comes_back_as_it_went_in(type: Any, value: Any) -> None:
    flags, payload = codec(type).encode(value, "k")
    assert codec(type).decode(flags, payload) == value


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(plain)
def test_any_plain_value_comes_back_as_it_went_in(value: Any) -> None:
    flags, payload = codec(max_bytes=1_000_000).encode(value, "k")
    assert codec().decode(flags, payload) == value


def test_each_caller_gets_a_value_of_its_own() -> None:
    flags, payload = codec().encode({"a": []}, "k")
    codec().decode(flags, payload)["a"].append(1)
    assert codec().decode(flags, payload) == {"a": []}


def test_long_value_is_compressed_and_a_short_one_is_not() -> None:
    assert codec().encode("x" * 5000, "k")[0] == COMPRESSED
    assert len(codec().encode("x" * 5000, "k")[1]) < 100
    assert codec().encode("x" * 500, "k")[0] == 0
    assert codec().encode(None, "k") == (NEGATIVE, b"")


@pytest.mark.parametrize(
    ("type", "value", "says"),
    [
        (Any, object(), "object"),
        (Any, Book("a", 1), "type=Book"),
        (Any, {"a": {1: object()}}, "object"),
        (Any, 2**70, "int"),
        (Any, "x" * 20_000, "20003 bytes, more than max_bytes=10000"),
    ],
    ids=["object", "dataclass without a type", "nested", "too large a number", "too long"],
)
def test_value_that_cannot_be_cached_is_refused_by_name(type: Any, value: Any, says: str) -> None:
    with pytest.raises(CacheValueError, match="user:7") as caught:
        codec(type).encode(value, "user:7")
    assert says in str(caught.value)


def test_value_that_does_not_fit_the_type_is_refused_when_it_is_stored() -> None:
    flags, payload = codec(Book).encode({"title": 1}, "k")
    with pytest.raises(CacheValueError, match=r"k: the value does not fit .*Book"):
        codec(Book).round_trip(flags, payload, {"title": 1}, "k")


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x81\xa1a"])
@pytest.mark.parametrize("flags", [0, COMPRESSED])
def test_bytes_that_are_no_value_are_undecodable(flags: int, payload: bytes) -> None:
    with pytest.raises(Undecodable):
        codec(Book).decode(flags, payload)


# ---- entries


def entry(tags: tuple[Tag, ...] = (), **other: Any) -> bytes:
    given = {"flags": 0, "schema": 3, "fresh_ms": 1000, "life_ms": 5000, "load_ms": 7, "payload": b"payload", **other}
    return build("0123456789abcdef:x", tags=tags, **given)


TAGS = (Tag(b"a", b"1" * 16), Tag("ü".encode(), b"2" * 16))


def test_age_is_what_the_server_says_is_left() -> None:
    found = Entry(entry(), 4800)
    assert (found.left_ms, found.age_ms, found.load_ms, found.payload, found.sound) == (800, 200, 7, b"payload", True)
    assert Entry(entry(), 3000).left_ms == -1000


def test_id_and_schema_are_where_the_scripts_look() -> None:
    assert id_of(entry()) == b"0123456789abcdef"
    assert schema_of(entry()) == 3
    assert (id_of(None), id_of(b""), schema_of(b"")) == (b"", b"", -1)


def test_entry_is_sound_under_the_very_versions_it_was_loaded_under() -> None:
    assert Entry(entry(TAGS), 1, pack_tags(TAGS), 2).sound
    assert Entry(entry(TAGS), 1, pack_tags(TAGS), 2).payload == b"payload"
    other = (TAGS[0], Tag(TAGS[1].name, b"3" * 16))
    gone = (TAGS[0], Tag(TAGS[1].name, None))
    for asked in (other, gone, TAGS[:1], ()):
        found = Entry(entry(TAGS), 1, pack_tags(asked), len(asked))
        assert not found.sound
        assert (found.tags, found.payload) == (TAGS, b"payload")
    assert not Entry(entry(), 1, pack_tags(TAGS), 2).sound


@given(st.integers(0, 200), st.binary(max_size=3))
def test_entry_that_is_cut_off_or_no_entry_is_told_from_one(cut: int, noise: bytes) -> None:
    raw = entry(TAGS)
    for bad in (raw[: min(cut, 80)], noise + raw[1:]):
        try:
            assert Entry(bad, 1).tags in (TAGS, TAGS[:0])
        except (ValueError, struct.error):
            continue


def test_leases_of_the_same_tags_differ_in_their_token_alone() -> None:
    one, two = new_lease(TAGS), new_lease(TAGS)
    assert one != two
    assert one[16:] == two[16:]
    assert len(one) == LEASE
    assert digest(TAGS) != digest(TAGS[:1]) != digest(())


# ---- names


def test_tuples_come_to_different_keys() -> None:
    texts = [("a", "b:c"), ("a:b", "c"), ("a", "b", "c"), ("a%3Ab", "c"), ("None",), ("%n",), ("True",)]
    others = [(None,), (True,), (False,), (1,), (0,)]
    assert len({full_key("r:", key) for key in (*texts, *others)}) == len(texts) + len(others)


def test_key_is_readable() -> None:
    moment = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    assert full_key("user:", (7, UUID(int=1), date(2026, 1, 2))) == "user:7:00000000-0000-0000-0000-000000000001:2026-01-02"
    assert full_key("user:", "a:b") == "user:a:b"
    assert ":" not in full_key("", (moment,))


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (("a", 1.5), "key part 1.5 is a float"),
        (("a", ["b"]), r"key part \['b'\] is a list"),
        (7, "key=7"),
        ((), r"key=\(\)"),
        ("", "key=''"),
        ("x" * 1100, "1102 bytes, more than 1024"),
        ("ü" * 600, "1202 bytes"),
        ("\ud800", "no valid text"),
    ],
)
def test_key_that_cannot_be_used_is_refused_by_name(key: Any, says: str) -> None:
    with pytest.raises(CacheKeyError, match=says):
        full_key("r:", key)


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ("news", "tags='news' is a str"),
        ([7], "tag 7 is a int"),
        ([["a"]], r"tag \['a'\] is a list"),
        ([""], "tag ''"),
        (["x" * 1100], "1100 bytes"),
        ([str(n) for n in range(40)], "40 tags"),
        ({"a": 1}, "is a dict"),
    ],
)
def test_tag_that_cannot_be_used_is_refused_by_name(tags: Any, says: str) -> None:
    with pytest.raises(CacheKeyError, match=says):
        tag_names(tags)


def test_tags_have_no_order_and_no_repetition() -> None:
    assert tag_names(["b", "a", "b"]) == tag_names({"a", "b"}) == ("a", "b")


def test_type_that_cannot_be_checked_is_refused_where_it_is_declared() -> None:
    with pytest.raises(CacheConfigError, match="type"):
        codec(dict[str, Book | Shelf])


class Login(BaseModel):
    name: str
    password: SecretStr = SecretStr("")
    note: str = Field(default="", exclude=True)


@dataclass
class Novel(Book):
    hero: str


@pytest.mark.parametrize(
    ("type", "value"),
    [
        (Login, Login(name="a", password=SecretStr("b"))),
        (Login, Login(name="a", note="b")),
        (Book, Novel("a", 1, "b")),
        (Any, {"price": Decimal("1.5")}),
    ],
    ids=["secret", "excluded field", "subclass", "decimal without a type"],
)
def test_value_that_would_come_back_as_another_is_refused_when_it_is_stored(type: Any, value: Any) -> None:
    encoded = codec(type).encode(value, "k")
    with pytest.raises(CacheValueError, match=r"k: .* would come back as another value"):
        codec(type).round_trip(*encoded, value, "k")


@pytest.mark.parametrize(
    ("type", "value"),
    [(Any, {"a": (1, [float("nan")])}), (list[Book], [Book("a", 1)]), (Login, Login(name="a")), (float, 1)],
    ids=["tuple and nan", "dataclasses", "model", "whole number"],
)
def test_value_that_comes_back_as_it_was_is_stored(type: Any, value: Any) -> None:
    codec(type).round_trip(*codec(type).encode(value, "k"), value, "k")


@pytest.mark.parametrize("payload", [zlib.compress(b"\0" * 10_001), zlib.compress(b"\xa1a")[:-3]], ids=["too long", "cut off"])
def test_what_unpacks_to_more_than_a_value_may_have_is_no_value(payload: bytes) -> None:
    with pytest.raises(Undecodable, match="more than"):
        codec(Any).decode(COMPRESSED, payload)
