"""The message: what goes on the wire, what is told apart as ours, and what cannot be sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.ledger.message import HEADER, fault_of, is_ours, sent_ms, wire

KEPT: dict[str, Any] = {
    "headers": {
        "id": "a",
        "task": "t",
        "eta": "2030-01-01T00:00:00+00:00",
        "expires": "2031-01-01T00:00:00+00:00",
        "x-mine": [1],
    },
    "properties": {"correlation_id": "a", "reply_to": "r"},
    "body": '[[1], {"k": "\\u0000"}, {}]',
    "content-type": "application/json",
    "content-encoding": "utf-8",
}


def sent(**changes: Any) -> dict[str, Any]:
    return json.loads(wire({**KEPT, **changes}, "default", 3, 7, 1_700_000_000_123))  # type: ignore[no-any-return]


def test_body_and_headers_go_out_as_they_were_kept() -> None:
    message = sent()
    assert message["body"] == KEPT["body"]
    assert message["headers"]["x-mine"] == [1]
    assert message["properties"]["correlation_id"] == "a"
    assert message["properties"]["reply_to"] == "r"


def test_times_are_left_to_postgres() -> None:
    assert sent()["headers"]["eta"] is None
    assert sent()["headers"]["expires"] is None
    assert KEPT["headers"]["eta"] is not None, "what is kept is not touched"


def test_wire_carries_revision_and_moment() -> None:
    assert sent()["headers"][HEADER] == {"r": 7, "t": 1_700_000_000_123}
    assert sent_ms(wire(KEPT, "default", 3, 7, 1_700_000_000_123)) == 1_700_000_000_123


def test_wire_names_queue_and_priority_and_tags_each_delivery_anew() -> None:
    first, second = sent(), sent()
    assert first["properties"]["delivery_info"] == {"exchange": "", "routing_key": "default"}
    assert first["properties"]["priority"] == 3
    assert first["properties"]["delivery_tag"] != second["properties"]["delivery_tag"]


def test_form_is_json_whatever_the_row_says() -> None:
    bare = {k: v for k, v in KEPT.items() if not k.startswith("content")}
    message = json.loads(wire(bare, "default", 3, 7, 0))
    assert (message["content-type"], message["content-encoding"]) == ("application/json", "utf-8")


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    )
)
def test_any_body_survives_the_wire(value: Any) -> None:
    body = json.dumps([[value], {}, {}])
    assert json.loads(sent(body=body)["body"]) == [[value], {}, {}]


def test_what_is_ours_is_told_by_its_header_and_is_whole() -> None:
    ours = sent()
    assert is_ours(ours)
    assert is_ours({**ours, "headers": {**ours["headers"], HEADER: {"durable": False}}})
    assert is_ours({**ours, "body": b"[[], {}, {}]"}), "as Celery puts back what was rejected"
    for other in (None, 5, "x", [], {}):
        assert not is_ours(other)
    for part in ("headers", "properties", "body"):
        for wrong in (None, [], 5):
            assert not is_ours({**ours, part: wrong})
    for header in ("task", "id", HEADER):
        assert not is_ours({**ours, "headers": {k: v for k, v in ours["headers"].items() if k != header}})
    for name in ("delivery_tag", "delivery_info"):
        assert not is_ours({**ours, "properties": {k: v for k, v in ours["properties"].items() if k != name}})


@pytest.mark.parametrize("raw", [b"", b"x", b"[]", b"5", b"{}", b'{"headers": []}', b'{"headers": {"holdfast": {"t": "x"}}}',
                                 b'{"headers": {"holdfast": 5}}', b"[" * 100_000])  # fmt: skip
def test_message_that_does_not_say_when_it_was_sent_is_no_trouble(raw: bytes) -> None:
    assert sent_ms(raw) is None


def test_sound_message_has_no_fault() -> None:
    assert fault_of(KEPT, "a") is None
    assert fault_of({**KEPT, "body": "[[NaN], {}, null]"}, "a") is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"headers": None}, "headers"),
        ({"headers": []}, "headers"),
        ({"headers": {"id": "a"}}, "`task`"),
        ({"headers": {"task": "t"}}, "`id`"),
        ({"headers": {"task": "t", "id": "other"}}, "`id`"),
        ({"properties": None}, "properties"),
        ({"body": None}, "body"),
        ({"body": "{"}, "body"),
        ({"body": "[]"}, "body"),
        ({"body": '["ab", {}, {}]'}, "body"),
        ({"body": '[[{"__type__": "decimal", "__value__": "x"}], {}, {}]'}, "body"),
        ({"body": "[" * 100_000}, "body"),
    ],
)
def test_fault_of_a_message_is_named(changes: dict[str, Any], said: str) -> None:
    assert said in (fault_of({**KEPT, **changes}, "a") or "")
