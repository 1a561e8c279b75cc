"""Strict JSON at the door: what means different things to different programs is refused, by name."""

from __future__ import annotations

import pytest

from worker.gateway.body import DEEPEST, parse
from worker.gateway.problems import Problem


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting"),
        (b'{"task": "a"} x', "Extra data"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b"[-Infinity]", "Infinity is no JSON"),
        (b"[1e999]", "does not fit a double"),
        (b"[" + b"9" * 41 + b"]", "more than 40 digits"),
        (b"[" + b"9" * 100_000 + b"]", "more than 40 digits"),
        (b'{"task": "a", "task": "b"}', "'task' stands twice"),
        (b'[{"x": {"a": 1, "b": 2, "a": 1}}]', "'a' stands twice"),
        (b'["\\ud800"]', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b'"\xff"', "UTF-8"),
        (b"\xef\xbb\xbf{}", "Expecting value"),
        (b"[" * 65 + b"]" * 65, "nested deeper"),
        (b"[" * 1_000_000, "nested deeper"),
        (b'{"a":' * 500_000, "nested deeper"),
        (b"[" + b"[]," * 100 + b"[" * 64 + b"]" * 64 + b"]", "nested deeper"),
    ],
)  # fmt: skip
def test_what_is_no_strict_json_is_refused_with_the_reason(body: bytes, why: str) -> None:
    with pytest.raises(Problem, match=why) as caught:
        parse(body)
    assert (caught.value.status, caught.value.code) == (400, "bad_json")
    assert len(caught.value.detail) < 300


def test_json_within_the_bounds_is_taken_as_it_is() -> None:
    assert parse(b'{"a": [1, 2.5, -3e2, true, null, "\\ud83d\\ude00"], "b": {}}') == {
        "a": [1, 2.5, -300.0, True, None, "\U0001f600"], "b": {},
    }  # fmt: skip
    assert parse(b"9" * 40) == int("9" * 40)
    deep = parse(b"[" * DEEPEST + b"]" * DEEPEST)
    assert deep == parse(b"[" * DEEPEST + b"]" * DEEPEST)
    assert len(parse(b"[" + b"[]," * 1000 + b"[]]")) == 1001
