"""The Python client without a gateway: what it loads, how it reads events, when it tries again, and what it refuses at once."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from worker import errors
from worker.client import Client, Event, asking
from worker.client.asking import Ask, Tries
from worker.client.frames import Frames

LOADED = """
import sys, worker.client
ours = {"worker", "models", "celery", "kombu", "sqlalchemy", "psycopg", "redis"}
print(*(name for name in sys.modules if name.split(".")[0] in ours))
"""


def test_client_loads_nothing_of_ours_but_the_errors() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    found = {name for name in done.stdout.split() if not name.startswith("worker.client")}
    assert found == {"worker", "worker.errors"}


# ---- events


def read(frames: Frames, *pieces: str) -> list[Event]:
    return [event for piece in pieces for event in frames.feed(piece.encode())]


def test_events_are_read_however_the_bytes_are_cut() -> None:
    text = 'retry: 200\n\nid: 7\nevent: state\ndata: {"state":"running"}\n\n:\n\n'
    text += 'event: progress\r\ndata: {"progress":\r\ndata: 1}\r\n\r\n'
    for size in (1, 2, 3, 7, len(text)):
        frames = Frames()
        found = read(frames, *(text[at : at + size] for at in range(0, len(text), size)))
        assert found == [Event("state", {"state": "running"}, "7"), Event("progress", {"progress": 1})]
        assert (frames.last_id, frames.again_s) == ("7", 0.2)


def test_separator_of_unicode_inside_an_error_does_not_end_its_line() -> None:
    (event,) = read(Frames(), 'event: state\ndata: {"error":"a\u2028b\x85c"}\n\n')
    assert event.data == {"error": "a\u2028b\x85c"}


def test_event_that_was_cut_off_is_forgotten_with_its_stream() -> None:
    frames = Frames()
    assert read(frames, 'id: 1\nevent: state\ndata: {"state":"acc', "") == []
    frames.begin()
    assert read(frames, 'event: state\ndata: {"state":"failed"}\n\n') == [Event("state", {"state": "failed"})]
    assert frames.last_id is None


# ---- trying again

GET = Ask("GET", "/")
ACT = Ask("POST", "/", repeatable=False)


def answer(status: int, code: str = "", **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "detail": "so it is", "status": status}, headers=headers)


@pytest.mark.parametrize(
    ("ask", "outcome", "again"),
    [
        (GET, answer(503, "ledger_unavailable"), True),
        (GET, answer(409, "idempotency_in_flight"), True),
        (GET, answer(429, "rate_limited"), True),
        (GET, httpx.Response(502, text="bad gateway"), True),
        (GET, httpx.ReadTimeout(""), True),
        (GET, answer(422, "idempotency_conflict"), False),
        (GET, answer(500, "internal_error"), False),
        (ACT, answer(409, "not_cancellable"), False),
        (ACT, answer(429, "rate_limited"), True),
        (ACT, answer(503, "ledger_unavailable"), False),
        (ACT, httpx.ConnectError(""), True),
        (ACT, httpx.ReadError(""), False),
    ],
)
def test_request_is_repeated_only_where_that_is_safe_and_may_help(ask: Ask, outcome: Any, again: bool) -> None:
    tries = Tries(ask, 60.0)
    if again:
        assert 0.05 <= tries.pause(outcome) <= 0.1
        assert 0.1 <= tries.pause(outcome) <= 0.2
    else:
        with pytest.raises(errors.HoldfastError):
            tries.pause(outcome)


def test_pause_is_as_long_as_the_gateway_asks_but_no_longer_than_the_patience() -> None:
    asked = answer(429, "rate_limited", **{"Retry-After": "7"})
    assert Tries(GET, 60.0).pause(asked) == 7.0
    with pytest.raises(errors.LimitExceeded, match="so it is") as caught:
        Tries(GET, 5.0).pause(asked)
    assert (caught.value.retry_after, caught.value.__dict__["code"]) == (7.0, "rate_limited")


def test_answer_of_somebody_else_is_an_error_that_says_so() -> None:
    with pytest.raises(errors.GatewayError, match="HTTP 404, and not the gateway's") as caught:
        Tries(GET, 5.0).pause(httpx.Response(404, text="<h1>Not found</h1>"))
    assert (caught.value.status, caught.value.code) == (404, "no_gateway")


# ---- what goes in


def test_job_that_is_handed_in_always_has_a_key_and_two_jobs_never_the_same() -> None:
    first, second = (asking.enqueue("a", (), None, None, {}).headers["Idempotency-Key"] for _ in range(2))
    assert first != second
    assert len(first) == 38
    assert asking.enqueue("a", (), None, 'x"y\\', {}).headers["Idempotency-Key"] == r'"x\"y\\"'
    jobs = asking.batch([{"task": "a"}, {"task": "a", "idempotency_key": "mine"}], together=True).content or b""
    assert jobs.count(b"idempotency_key") == 2
    assert b'"mine"' in jobs


def test_options_are_written_as_the_gateway_reads_them() -> None:
    at = datetime(2030, 1, 31, 8, tzinfo=UTC)
    ask = asking.enqueue("a", (1,), {"x": 2}, "k", {"delay": timedelta(minutes=2), "at": at, "metadata": {"order": 7}})
    assert json.loads(ask.content or b"") == {
        "task": "a", "args": [1], "kwargs": {"x": 2}, "delay": 120.0, "at": "2030-01-31T08:00:00+00:00", "metadata": {"order": 7}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"args": [{1}]}, "args"),
        ({"args": [float("nan")]}, "args"),
        ({"key": "ü"}, "idempotency_key"),
        ({"key": ""}, "idempotency_key"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_it_is(given: dict[str, Any], field: str) -> None:
    with pytest.raises(errors.InvalidJob, match=f"^{field}: ") as caught:
        asking.enqueue("a", given.get("args", ()), None, given.get("key"), {})
    assert caught.value.field == field


def test_more_jobs_than_go_together_are_refused_and_those_that_need_not_are_split() -> None:
    calls = [{"task": "a"}] * (asking.BATCH + 1)
    with pytest.raises(errors.InvalidJob, match="10,001 are more than 10,000"):
        asking.batch(calls, together=True)
    assert [(ask.content or b"").count(b'"task"') for ask in asking.batches(calls)] == [asking.BATCH, 1]


@pytest.mark.parametrize(
    ("url", "key", "argument"),
    [("127.0.0.1:8000", "hf_x", "url"), ("http://127.0.0.1", "two words", "key"), ("http://x", "", "key")],
)
def test_address_or_key_that_cannot_be_is_refused_by_name(url: str, key: str, argument: str) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: "):
        Client(url, key)
