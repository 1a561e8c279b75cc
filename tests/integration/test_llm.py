"""`llm.chat` with the real client against a server that speaks the real protocol: what is called, what is spent, what waits."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from redis import Redis

from tests.harness import eventually
from tests.integration.conftest import Bench
from tests.integration.test_cli import Said
from tests.integration.test_cli import holdfast as holdfast
from tests.llm_server import Api, Handler, Reply, answer, events, hang_up, refuse, serve
from worker.embedded import Stack
from worker.engine.relay import Relay
from worker.errors import HttpStatusError, HttpTimeout, HttpUnreachable, InvalidRequest, LimitExceeded, SettingsError
from worker.ledger import limits
from worker.limits import Budgets
from worker.limits.policy import parse_policy
from worker.settings import settings
from worker.tasks import chat
from worker.tasks.chat import transport
from worker.tasks.chat.metered import complete
from worker.tasks.llm import llm_chat

KEY = "sk-s3cret-key"
HELLO = [{"role": "user", "content": "Say hello."}]
#: Nothing can be heard of a server that hangs up in the middle of this.
LONG = ["abc" * 10] * 3


@pytest.fixture
def api() -> Iterator[Api]:
    with serve() as api:
        yield api


@pytest.fixture(autouse=True)
def _configured(api: Api, conf: Callable[..., None]) -> None:
    """One micro for each token that is sent, two for each that comes."""
    conf(llm_base_url=api.url, llm_api_key=KEY, llm_prices="small 1000000 2000000 500000", limits_timeout_ms=5000)


@pytest.fixture
def policy(db: psycopg.Connection[Any]) -> Callable[[str], Any]:
    return lambda text: limits.put(db, parse_policy(text))


class Desk:
    """Sends jobs, runs them, and tells what became of them."""

    def __init__(self, bench: Bench, relay: Relay, db: psycopg.Connection[Any]) -> None:
        self.bench, self.relay, self.db = bench, relay, db

    def run(self, **arguments: Any) -> str:
        job_id: str = llm_chat.delay(HELLO, **{"model": "small", **arguments}).id
        self.bench.work()
        return job_id

    def again(self) -> None:
        """Let what was put off be due, and run it."""
        self.db.execute("UPDATE jobs SET available_at = clock_timestamp()")
        self.relay.round()
        self.bench.work()

    def living(self, job_id: str) -> tuple[str, int, float]:
        """Return state, attempts and the seconds until it is due."""
        wait_s = "extract(epoch FROM available_at - clock_timestamp())::float8"
        row = self.db.execute(f"SELECT state, attempt, {wait_s} FROM jobs WHERE id = %s", (job_id,)).fetchone()
        assert row is not None, self.ended(job_id)
        return row  # type: ignore[return-value]

    def ended(self, job_id: str) -> tuple[str, int, str | None, Any]:
        """Return state, attempts, error and result."""
        row = self.db.execute("SELECT state, attempt, error, result FROM job_history WHERE id = %s", (job_id,)).fetchone()
        assert row is not None, self.db.execute("SELECT state, error FROM jobs WHERE id = %s", (job_id,)).fetchone()
        return row  # type: ignore[return-value]

    @property
    def spent(self) -> list[tuple[Any, ...]]:
        rows = self.db.execute("SELECT subject, model, requests, tokens_in, tokens_out, micros FROM usage ORDER BY reserved_at")
        return rows.fetchall()

    @property
    def reserved(self) -> int:
        return int(self.db.execute("SELECT count(*) FROM usage_reservations").fetchone()[0])  # type: ignore[index]


@pytest.fixture
def desk(bench: Bench, relay: Relay, db: psycopg.Connection[Any]) -> Desk:
    return Desk(bench, relay, db)


def prepared(**arguments: Any) -> chat.Chat:
    return chat.prepare(HELLO, "small", **arguments)


# ---- a call that goes well


def test_answer_is_the_jobs_result_and_its_spend_is_on_record(desk: Desk, api: Api) -> None:
    api.replies = [answer("Hel", "lo", tokens_in=12, tokens_out=5, cached_in=4)]
    job_id = desk.run(user="7", options={"temperature": 0.5})
    state, attempt, _, result = desk.ended(job_id)
    assert (state, attempt) == ("succeeded", 1)
    assert (result["content"], result["id"], result["cached"]) == ("Hello", "chatcmpl-1", False)
    assert result["choices"] == [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]
    assert result["usage"] == {"tokens_in": 12, "tokens_out": 5, "micros": 8 + 2 + 10, "estimated": False}
    assert desk.spent == [("llm:default/user:7", "small", 1, 12, 5, 20)]
    assert desk.db.execute("SELECT job_id FROM usage").fetchone() == (job_id,)
    assert desk.reserved == 0


def test_request_says_what_the_job_says_and_nothing_of_the_machine(
    desk: Desk, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("API_KEY", "ORG_ID", "PROJECT_ID", "BASE_URL"):
        monkeypatch.setenv(f"OPENAI_{name}", "http://127.0.0.1:9/")
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-custom: 1\nAuthorization: Bearer other")
    desk.run(options={"temperature": 0, "tools": [{"type": "function"}], "top_k": 4})
    (seen,) = api.seen
    assert seen.path == "/v1/chat/completions"
    sent = {"model": "small", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    assert seen.body == {**sent, "temperature": 0, "tools": [{"type": "function"}], "top_k": 4, "max_completion_tokens": 1024}
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.headers["user-agent"] == "holdfast"
    assert not [name for name in seen.headers if name.startswith(("x-", "openai-"))]


def test_server_that_wants_no_key_is_sent_none(desk: Desk, api: Api, conf: Callable[..., None]) -> None:
    conf(llm_api_key="")
    assert desk.ended(desk.run(options={"max_tokens": 7}))[0] == "succeeded"
    assert "authorization" not in api.seen[0].headers
    assert (api.seen[0].body["max_tokens"], "max_completion_tokens" in api.seen[0].body) == (7, False)


def test_server_that_does_not_count_is_settled_by_estimate(desk: Desk, api: Api) -> None:
    api.replies = [answer(*LONG, counts=False)]
    result = desk.ended(desk.run())[3]
    assert result["usage"]["estimated"] is True
    assert desk.spent == [("llm:default", "small", 1, prepared().tokens_in, 30, prepared().tokens_in + 60)]


def test_usage_command_shows_it_by_subject_model_and_day(desk: Desk, api: Api, holdfast: Callable[..., Said]) -> None:
    for user in ("7", "7", "8"):
        desk.run(user=user)
    rows = holdfast("usage", "--json").document
    assert [(row["subject"], row["model"], row["requests"], row["micros"]) for row in rows] == [
        ("llm:default/user:7", "small", 2, 44), ("llm:default/user:8", "small", 1, 22)
    ]  # fmt: skip
    (total,) = holdfast("usage", "--by", "day", "--subject", "llm:default", "--json").document
    assert (total["tokens_in"], total["tokens_out"], total["micros"]) == (36, 15, 66)


# ---- budgets


def test_budget_that_is_used_up_puts_the_job_off_without_an_attempt(desk: Desk, api: Api, policy: Callable[[str], Any]) -> None:
    policy("budget llm:*/user:* 1 requests/hour")
    desk.run(user="7")
    waiting = desk.run(user="7")
    state, attempt, wait_s = desk.living(waiting)
    assert (state, attempt) == ("scheduled", 0)
    assert 3400 < wait_s < 3800, "until the hour has room"
    assert desk.ended(desk.run(user="8"))[0] == "succeeded", "a user's quota is the user's"
    desk.again()
    assert desk.living(waiting)[:2] == ("scheduled", 0), "and again, should it be sent too early"
    assert (len(api.seen), desk.reserved) == (2, 0)
    policy("budget llm:*/user:* 2 requests/hour")
    desk.again()
    assert desk.ended(waiting)[:2] == ("succeeded", 1)


def test_job_that_says_so_fails_where_others_wait(desk: Desk, policy: Callable[[str], Any]) -> None:
    policy("budget llm:* 1 requests/day")
    desk.run()
    state, _, error, _ = desk.ended(desk.run(on_limit="fail"))
    assert state == "failed"
    assert error is not None
    assert error.startswith("LimitExceeded: llm:default (1 requests/day) refuses")


def test_call_that_no_budget_will_ever_admit_fails_at_once(desk: Desk, api: Api, policy: Callable[[str], Any]) -> None:
    policy("budget llm:* 1000 micros/day")
    state, attempt, error, _ = desk.ended(desk.run())
    assert (state, attempt) == ("failed", 1)
    assert error is not None
    assert error.startswith("CostTooHigh: micros=")
    assert desk.ended(desk.run(options={"max_completion_tokens": 100}))[0] == "succeeded"
    assert len(api.seen) == 1


def test_model_without_a_price_is_refused_under_a_budget_of_money_and_free_without(
    desk: Desk, api: Api, policy: Callable[[str], Any]
) -> None:
    assert desk.ended(desk.run(model="unknown"))[3]["usage"]["micros"] == 0
    policy("budget llm:* 1000000 micros/day")
    state, _, error, _ = desk.ended(desk.run(model="unknown"))
    assert state == "failed"
    assert error is not None
    assert error.startswith("Unpriced: a budget of money holds for 'llm:default'")
    assert len(api.seen) == 1


def test_daily_budget_of_money_is_never_exceeded_by_jobs_at_once(api: Api, policy: Callable[[str], Any], desk: Desk) -> None:
    policy("budget llm:* 1000 micros/day")
    api.replies = [answer(tokens_in=20, tokens_out=50, wait_s=0.05)]
    call = prepared(options={"max_completion_tokens": 50})
    refused = []

    def work() -> None:
        for _ in range(4):
            try:
                complete(call, f"{threading.get_ident()}-{time.monotonic_ns()}")
            except LimitExceeded as exc:
                refused.append(exc)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert call.estimate.micros is not None
    assert call.estimate.micros >= 120
    spent = sum(row[5] for row in desk.spent)
    assert refused
    assert 1000 - call.estimate.micros < spent <= 1000
    assert desk.reserved == 0


# ---- what breaks


def test_broken_stream_is_settled_by_what_arrived_and_tried_again(desk: Desk, api: Api) -> None:
    api.replies = [answer(*LONG, cut_after=2), answer()]
    job_id = desk.run()
    state, attempt, wait_s = desk.living(job_id)
    assert attempt == 1
    assert state == "scheduled" or (state, wait_s <= 0) == ("queued", True), "it waits, if for no more than a moment"
    assert desk.spent == [("llm:default", "small", 1, prepared().tokens_in, 20, prepared().tokens_in + 40)]
    desk.again()
    assert desk.ended(job_id)[:2] == ("succeeded", 2)
    assert [row[4] for row in desk.spent] == [20, 5], "both calls were made, and each counts once"
    assert desk.reserved == 0


def test_stream_that_only_lacks_its_good_bye_is_whole(desk: Desk, api: Api) -> None:
    def unfinished(handler: Handler) -> None:
        handler.start(200, "text/event-stream", {"Transfer-Encoding": "chunked"})
        handler.event(choices=[{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}])
        hang_up(handler)

    api.replies = [unfinished]
    state, _, _, result = desk.ended(desk.run())
    assert (state, result["content"], result["usage"]["estimated"]) == ("succeeded", "Hello", True)
    assert len(desk.spent) == 1


def test_call_that_takes_too_long_ends_in_time_and_is_settled(desk: Desk, api: Api) -> None:
    api.replies = [answer(*LONG, ends=False)]
    started = time.monotonic()
    with pytest.raises(HttpTimeout, match=r"within 0\.5 s"):
        complete(prepared(timeout_s=0.5), "slow")
    assert time.monotonic() - started < 10
    assert [row[3:5] for row in desk.spent] == [(prepared().tokens_in, 30)]


def test_server_that_only_keeps_the_connection_alive_cannot_hold_the_call(desk: Desk, api: Api) -> None:
    def drip(handler: Handler) -> None:
        handler.start(200, "text/event-stream", {"Transfer-Encoding": "chunked"})
        while True:
            handler.send(b": wait\n\n")
            time.sleep(0.05)

    api.replies = [drip]
    started = time.monotonic()
    with pytest.raises(HttpTimeout):
        complete(prepared(timeout_s=0.5), "drip")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "reply",
    [events(b"data: {not json}\n\n"), events(b"data: [1]\n\n"), events(b"data: 5\n\n"), events(b"<html></html>"), events(),
     events(b'data: {"choices": [5]}\n\n'), events(b'data: {"choices": [{"delta": 7, "index": "x"}]}\n\n'),
     events(b'data: {"error": {"message": "overloaded"}}\n\n'), hang_up],
    ids=range(9),
)  # fmt: skip
def test_answer_that_is_none_is_told_as_such_and_its_call_settled(desk: Desk, api: Api, reply: Reply) -> None:
    api.replies = [reply]
    with pytest.raises(HttpUnreachable, match=r"did not answer properly|before it was whole"):
        complete(prepared(), "odd")
    assert [row[2:5] for row in desk.spent] == [(1, prepared().tokens_in, 0)]
    assert desk.reserved == 0


def test_endless_answer_is_not_read_to_its_end(desk: Desk, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MOST_BYTES", 1000)
    api.replies = [answer(*(["x" * 100] * 100))]
    with pytest.raises(HttpUnreachable, match="longer than 1,000 bytes"):
        complete(prepared(), "long")
    assert 0 < desk.spent[0][4] < 500


def test_call_that_was_never_sent_costs_nothing(desk: Desk, conf: Callable[..., None]) -> None:
    conf(llm_base_url="http://127.0.0.1:1/v1")
    with pytest.raises(HttpUnreachable, match="cannot connect"):
        complete(prepared(), "nobody")
    assert (desk.spent, desk.reserved) == ([], 0)


def test_time_limit_of_the_job_settles_what_is_known(desk: Desk, api: Api) -> None:
    def strike(*_: Any) -> None:
        raise SoftTimeLimitExceeded

    api.replies = [answer(*LONG, ends=False)]
    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, 0.7)
    try:
        with pytest.raises(SoftTimeLimitExceeded):
            complete(prepared(), "limited")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [row[4] for row in desk.spent] == [30]
    assert desk.reserved == 0


@pytest.mark.parametrize("status", [500, 503, 408])
def test_passing_refusal_is_tried_again_and_costs_nothing(desk: Desk, api: Api, status: int) -> None:
    api.replies = [refuse(status), answer()]
    job_id = desk.run()
    assert (desk.living(job_id)[1], desk.spent, desk.reserved) == (1, [], 0)
    desk.again()
    assert desk.ended(job_id)[:2] == ("succeeded", 2)
    assert len(desk.spent) == 1


@pytest.mark.parametrize(
    "reply",
    [refuse(400), refuse(401), refuse(404), refuse(501), refuse(307, headers={"Location": "/v1/else"}),
     refuse(429, code="insufficient_quota")],
    ids=range(6),
)  # fmt: skip
def test_lasting_refusal_fails_the_job_at_once_and_costs_nothing(desk: Desk, api: Api, reply: Reply) -> None:
    api.replies = [reply]
    state, attempt, error, _ = desk.ended(desk.run())
    assert (state, attempt) == ("failed", 1)
    assert error is not None
    assert error.startswith("HttpStatusError")
    assert (len(api.seen), desk.spent, desk.reserved) == (1, [], 0)


def test_api_key_is_nowhere_to_be_read(
    desk: Desk, api: Api, redis: Redis, cache: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    api.replies = [refuse(401, f"Incorrect API key provided: {KEY}."), answer(cut_after=1), answer()]
    ids = [desk.run(), desk.run()]
    desk.again()
    assert [desk.ended(job_id)[0] for job_id in ids] == ["failed", "succeeded"]
    told = [
        row[0] for table in ("job_history", "attempts") for row in desk.db.execute(f"SELECT to_jsonb(t)::text FROM {table} t")
    ]
    assert any("Incorrect API key provided: ***" in text for text in told)
    told += [str(server.dump(key)) for server in (redis, cache) for key in server.scan_iter()]
    assert [text for text in (*told, caplog.text, repr(settings())) if KEY in text] == []


# ---- what the provider says


def test_too_many_requests_waits_as_long_as_asked_and_costs_neither_attempt_nor_budget(desk: Desk, api: Api) -> None:
    api.replies = [refuse(429, "slow down", headers={"retry-after": "20"}), answer()]
    first, second = desk.run(), desk.run()
    for job_id in (first, second):
        state, attempt, wait_s = desk.living(job_id)
        assert (state, attempt) == ("scheduled", 0)
        assert 15 < wait_s < 24
    assert len(api.seen) == 1, "the second has not called"
    assert (desk.spent, desk.reserved) == ([], 0)
    desk.again()
    assert [desk.living(job_id)[0] for job_id in (first, second)] == ["scheduled", "scheduled"]
    assert len(api.seen) == 1


def test_pause_ends_and_the_job_succeeds_on_its_first_attempt(desk: Desk, api: Api, redis: Redis) -> None:
    api.replies = [refuse(429, headers={"retry-after-ms": "300"}), answer()]
    job_id = desk.run()
    assert [key for key in redis.scan_iter("holdfast:llm:*") if redis.pttl(key) <= 0] == []
    eventually(lambda: not list(redis.scan_iter("holdfast:llm:*")), 5)
    desk.again()
    assert desk.ended(job_id)[:2] == ("succeeded", 1)


def test_no_requests_left_holds_back_this_model_and_no_other(desk: Desk, api: Api) -> None:
    api.replies = [answer(headers={"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "40s"})]
    assert desk.ended(desk.run())[0] == "succeeded"
    state, attempt, wait_s = desk.living(desk.run())
    assert (state, attempt) == ("scheduled", 0)
    assert 35 < wait_s < 46
    assert desk.ended(desk.run(model="other"))[0] == "succeeded"
    assert len(api.seen) == 2


def test_tokens_left_are_enough_for_a_small_call_alone(desk: Desk, api: Api) -> None:
    api.replies = [answer(headers={"x-ratelimit-remaining-tokens": "300", "x-ratelimit-reset-tokens": "1m0s"})]
    desk.run()
    assert desk.living(desk.run())[0] == "scheduled"
    assert desk.ended(desk.run(options={"max_completion_tokens": 100}))[0] == "succeeded"


# ---- the cache

SAME = {"cache": True, "options": {"temperature": 0}}


def test_equal_call_is_answered_from_memory_and_costs_nothing(desk: Desk, api: Api) -> None:
    first, second = desk.run(**SAME, user="7"), desk.run(**SAME, user="8")
    results = [desk.ended(job_id)[3] for job_id in (first, second)]
    assert [(result["content"], result["cached"]) for result in results] == [("Hello", False), ("Hello", True)]
    assert results[1]["usage"] == {"tokens_in": 0, "tokens_out": 0, "micros": 0, "estimated": False}
    assert (len(api.seen), len(desk.spent), desk.reserved) == (1, 1, 0)
    desk.run(**SAME, subject="org:other")
    desk.run(cache=True, options={"temperature": 0, "seed": 2})
    desk.run(options={"temperature": 0})
    assert len(api.seen) == 4, "another organisation, another question, and one that does not allow it"


def test_kept_answer_needs_no_budget(desk: Desk, policy: Callable[[str], Any]) -> None:
    policy("budget llm:* 1 requests/day")
    desk.run(**SAME)
    assert desk.ended(desk.run(**SAME))[3]["cached"] is True
    assert desk.living(desk.run())[0] == "scheduled"


def test_many_equal_calls_at_once_are_one(desk: Desk, api: Api) -> None:
    api.replies = [answer(wait_s=0.5)]
    told: list[Any] = []
    threads = [threading.Thread(target=lambda n=n: told.append(complete(prepared(**SAME), f"equal-{n}"))) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result["cached"] for result in told) == [False, *[True] * 5]
    assert (len(api.seen), len(desk.spent), desk.reserved) == (1, 1, 0)


def test_those_who_waited_for_an_equal_call_that_failed_are_put_off(desk: Desk, api: Api) -> None:
    api.replies = [refuse(400)]
    with pytest.raises(HttpStatusError):
        complete(prepared(**SAME), "fails")
    with pytest.raises(LimitExceeded, match="an equal call failed a moment ago") as caught:
        complete(prepared(**SAME), "waits")
    assert 0 < caught.value.retry_after <= 5
    assert (len(api.seen), desk.spent, desk.reserved) == (1, [], 0)


# ---- deaths and outages


def test_lease_of_a_long_call_is_renewed(desk: Desk, api: Api, conf: Callable[..., None], policy: Callable[[str], Any]) -> None:
    policy("budget llm:* 1 requests/day")
    conf(llm_lease_s=1)
    api.replies = [answer(wait_s=2.5)]
    thread = threading.Thread(target=complete, args=(prepared(), "long"))
    thread.start()
    time.sleep(2)
    assert Budgets(limits.plan()).open_calls("llm:default") == 1
    with pytest.raises(LimitExceeded):
        complete(prepared(), "other")
    thread.join()
    assert len(desk.spent) == 1


def test_job_that_is_delivered_twice_calls_once(desk: Desk, api: Api) -> None:
    job_id = llm_chat.delay(HELLO, model="small").id
    message = desk.bench.take()
    assert message is not None
    for _ in range(2):
        desk.bench.run(message)
    assert desk.ended(job_id)[0] == "succeeded"
    assert (len(api.seen), len(desk.spent)) == (1, 1)


def test_nothing_is_called_while_redis_is_away(desk: Desk, api: Api, stack: Stack, conf: Callable[..., None]) -> None:
    conf(limits_timeout_ms=200)
    llm_chat.delay(HELLO, model="small")
    message = desk.bench.take()
    assert message is not None
    stack.redis.kill()
    with pytest.raises(LimitExceeded):
        complete(prepared(), "away")
    desk.bench.run(message)
    assert desk.living(message["headers"]["id"])[:2] == ("scheduled", 0)
    assert (api.seen, desk.spent, desk.reserved) == ([], [], 0)


def test_spend_is_recorded_when_postgres_comes_back_within_seconds(desk: Desk, api: Api, stack: Stack) -> None:
    begun = threading.Event()

    def slow(handler: Handler) -> None:
        begun.set()
        answer(wait_s=1.0)(handler)

    api.replies = [slow]
    thread = threading.Thread(target=complete, args=(prepared(), "through"))
    thread.start()
    assert begun.wait(20)
    stack.postgres.kill()
    time.sleep(1.5)
    stack.postgres.start()
    thread.join(30)
    with psycopg.connect(settings().database_url) as conn:
        assert conn.execute("SELECT tokens_in, tokens_out FROM usage").fetchall() == [(12, 5)]


def test_flush_of_redis_in_a_call_forgets_no_spend(desk: Desk, api: Api, redis: Redis, policy: Callable[[str], Any]) -> None:
    policy("budget llm:* 1100 tokens/day")

    def flushed(handler: Handler) -> None:
        redis.flushall()
        answer(tokens_in=900, tokens_out=150)(handler)

    api.replies = [flushed, answer()]
    assert desk.ended(desk.run())[0] == "succeeded"
    assert desk.living(desk.run())[0] == "scheduled", "1,050 of 1,100 tokens are spent"
    assert len(api.seen) == 1


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"messages": []}, "messages"), ({"messages": "hello"}, "messages"), ({"messages": ["hello"]}, "messages"),
     ({"model": ""}, "model"), ({"model": "two words"}, "model"), ({"user": "a/b"}, "subject: 'llm:default/user:a/b'"),
     ({"subject": "acme"}, "subject: 'acme'"), ({"options": []}, "options"), ({"options": {"stream": False}}, "options: stream"),
     ({"options": {"model": "x"}}, "options: model"), ({"options": {"max_tokens": 0}}, "options: max_tokens 0"),
     ({"options": {"max_tokens": 1.5}}, "options: max_tokens 1.5"), ({"options": {"n": 1000}}, "options: n 1000"),
     ({"timeout_s": 0}, "timeout_s 0"), ({"timeout_s": "soon"}, "timeout_s 'soon'"), ({"cache": True}, "cache True"),
     ({"cache": 1, "options": {"temperature": 0}}, "cache 1"), ({"on_limit": "wait"}, "on_limit 'wait'"),
     ({"max_retries": -1}, "max_retries -1")],
    ids=str,
)  # fmt: skip
def test_bad_argument_fails_the_job_at_once_and_is_named(arguments: dict[str, Any], named: str, env: Any, api: Api) -> None:
    found = llm_chat.apply((), {"messages": HELLO, "model": "small", **arguments}).result
    assert isinstance(found, ValueError)
    assert str(found).startswith(named)
    assert "\n" not in str(found)
    assert api.seen == []


def test_api_that_is_not_configured_is_said_with_its_setting(conf: Callable[..., None]) -> None:
    conf(llm_base_url="")
    with pytest.raises(SettingsError, match="HOLDFAST_LLM_BASE_URL is not set"):
        prepared()


def test_result_is_plain_json_and_the_task_needs_no_broker(env: Any, api: Api, redis: Redis) -> None:
    result = llm_chat.apply((HELLO,), {"model": "small"}).get()
    assert json.loads(json.dumps(result)) == result
    api.replies = [refuse(429)]
    assert isinstance(llm_chat.apply((HELLO,), {"model": "small"}).result, LimitExceeded)
    assert isinstance(llm_chat.apply((HELLO,), {"model": "small", "options": {"n": 0}}).result, InvalidRequest)
