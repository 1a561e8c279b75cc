"""What a call of a language model is reckoned to take, what it costs, and what a provider's headers say."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from worker.tasks.chat import room, tokens
from worker.tasks.chat.answer import Answer, Counted
from worker.tasks.chat.prices import Price, price_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TABLE = ("small 150000 600000 75000", "large-* 2500000 10000000", "large-mini-* 100 200", "free 0 0")


# ---- tokens


def test_a_token_is_reckoned_for_three_bytes() -> None:
    assert [tokens.of_text(text) for text in ("", "a", "abc", "abcd", "日本", "\ud800")] == [0, 1, 1, 2, 2, 1]


def test_input_is_all_that_is_sent_as_json() -> None:
    short = tokens.of_input([{"role": "user", "content": "x" * 300}], {})
    assert 100 < short < 120
    assert tokens.of_input([{"role": "user", "content": "x" * 300}], {"tools": [{"name": "y" * 300}]}) > short + 100


def test_image_counts_the_same_however_long_its_text_is() -> None:
    def image(url: str) -> int:
        part = {"type": "image_url", "image_url": {"url": url}}
        return tokens.of_input([{"role": "user", "content": [{"type": "text", "text": "what?"}, part]}], {})

    assert image("data:image/png;base64," + "A" * 100_000) == image("https://example.com/a.png")
    assert tokens.IMAGE < image("") < tokens.IMAGE + 50


def test_output_is_its_bound_for_each_answer() -> None:
    assert tokens.of_output({"max_tokens": 10}) == 10
    assert tokens.of_output({"max_completion_tokens": 10, "n": 3}) == 30


# ---- prices


def test_own_price_stands_before_the_longest_prefix() -> None:
    assert price_of(TABLE, "small") == Price(150_000, 600_000, 75_000)
    assert price_of(TABLE, "large-1") == Price(2_500_000, 10_000_000, 2_500_000)
    assert price_of(TABLE, "large-mini-2") == Price(100, 200, 100)
    assert price_of(TABLE, "smaller") is None
    assert price_of((), "small") is None


def test_cost_is_rounded_up_and_counts_what_the_provider_had_in_its_cache() -> None:
    small = price_of(TABLE, "small")
    assert small is not None
    assert small.of(1_000_000, 1_000_000) == 750_000
    assert small.of(1, 0) == 1
    assert small.of(0, 0) == 0
    assert small.of(1_000_000, 0, 400_000) == 120_000
    assert small.of(10, 0, 10**9) == small.of(10, 0, 10), "no more was in the cache than was sent"
    assert price_of(TABLE, "free").of(10**6, 10**6) == 0  # type: ignore[union-attr]


# ---- what the provider has left


@pytest.mark.parametrize(
    ("text", "expected"),
    [("6m0s", 360), ("20ms", 0.02), ("1h2m3.5s", 3600), ("59.56s", 59.56), ("12.5", 12.5), ("0", 0), ("2026-01-01T00:00:30Z", 30),
     (str(int(NOW.timestamp()) + 40), 40), ("2025-01-01T00:00:00Z", 0), ("", None), ("soon", None), ("5 s", None), ("-3", None),
     ("9" * 400, None), ("s", None)],
)  # fmt: skip
def test_reset_is_a_duration_or_a_moment_and_at_most_an_hour(text: str, expected: float | None) -> None:
    found = room.seconds(text, NOW)
    assert found == (None if expected is None else pytest.approx(expected))


def test_headers_tell_what_is_left_and_until_when() -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "12s",
               "x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-tokens": "6ms"}  # fmt: skip
    assert room.told_by(headers, 200, NOW) == [("requests", 0, 12.0), ("tokens", 149_984, 0.006)]
    assert room.told_by({"x-ratelimit-remaining-requests": "0"}, 200, NOW) == [], "until when?"
    assert room.told_by({"x-ratelimit-remaining-tokens": "-1", "x-ratelimit-reset-tokens": "1s"}, 200, NOW) == []


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [({"retry-after": "7"}, 7.0), ({"retry-after-ms": "250", "retry-after": "1"}, 0.25), ({}, room.UNTOLD_S),
     ({"retry-after": "Thu, 01 Jan 2026 00:00:09 GMT"}, 9.0), ({"retry-after": "soon"}, room.UNTOLD_S),
     ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "30s"}, 30.0), ({"retry-after": "99999"}, 3600.0)],
)  # fmt: skip
def test_too_many_requests_says_how_long_to_wait(headers: dict[str, str], wait_s: float) -> None:
    assert room.told_by(headers, 429, NOW)[-1] == ("paused", 0, wait_s)


# ---- the answer


def chunk(delta: dict, finish: str | None = None, index: int = 0, **more: object) -> dict:
    return {"id": "c", "model": "m", "choices": [{"index": index, "delta": delta, "finish_reason": finish}], **more}


def test_pieces_make_a_whole_with_tool_calls_and_several_choices() -> None:
    answer = Answer()
    assert not answer.complete
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a":'}}
    for piece in (
        chunk({"role": "assistant", "content": ""}), chunk({"content": "He"}), chunk({"content": "llo"}, "stop"),
        chunk({"role": "assistant", "content": None, "tool_calls": [call]}, index=1),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}, index=1),
    ):  # fmt: skip
        answer.add(piece)
    assert not answer.complete, "one of its choices has not ended"
    answer.add(chunk({}, "tool_calls", index=1))
    assert answer.complete
    told = answer.told()
    assert (told["content"], told["model"]) == ("Hello", "m")
    assert told["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}
    (made,) = told["choices"][1]["message"]["tool_calls"]
    assert (made["id"], made["function"]) == ("call_1", {"name": "add", "arguments": '{"a":1}'})
    assert answer.tokens_out == 2 + tokens.of_text("add") + tokens.of_text('{"a":1}')


def test_usage_is_the_last_that_can_be_counted() -> None:
    answer = Answer()
    answer.add(chunk({"content": "a"}, usage={"prompt_tokens": 9, "completion_tokens": 1}))
    for odd in (None, {}, {"prompt_tokens": -1, "completion_tokens": 1}, {"prompt_tokens": 1.5, "completion_tokens": 1}, "many",
                {"prompt_tokens": 2**60, "completion_tokens": 1}):  # fmt: skip
        answer.add(chunk({}, usage=odd))
    assert answer.counted == Counted(9, 1)
    counted = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}
    answer.add({"choices": [], "usage": counted})
    assert answer.counted == Counted(9, 4, 8)
