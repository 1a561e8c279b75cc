"""Callbacks: told once for each end of a job, signed, tried again for a day, in order, and never to where they may not go."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from redis import Redis
from standardwebhooks import Webhook, WebhookVerificationError

from tests import sample_tasks as tasks
from tests.integration.conftest import Bench
from tests.integration.test_http_call import Reply, Site, _serve, hang_up, redirect, reply
from worker.app import app
from worker.cli.program import invoke
from worker.engine.calls import Call, accept_calls
from worker.engine.relay import Relay
from worker.errors import AddressRefused, HttpStatusError
from worker.ledger import manage, settle
from worker.ledger.settle import Guard, Outcome
from worker.limits import Circuit
from worker.store import keys
from worker.tasks import outbound, webhooks
from worker.tasks.webhook import post, posting

Conn = psycopg.Connection[Any]
assert webhooks.deliver.name == "webhook.deliver"
SECRET, OLD = ("whsec_" + b64encode(text.encode() * 2).decode() for text in ("new secret of theirs", "old secret of theirs"))
JOB = "tests.sample_tasks."


@pytest.fixture
def site() -> Iterator[Site]:
    for site in _serve():
        site.replies = [reply(204)]
        yield site


@pytest.fixture(autouse=True)
def _secrets(conf: Callable[..., None]) -> None:
    conf(webhook_secrets=SECRET, http_allow_private=1)


class Hook:
    """A job with a callback, and the deliveries that tell of it."""

    def __init__(self, db: Conn, relay: Relay, bench: Bench, redis: Redis) -> None:
        self.db, self.relay, self.bench, self.redis = db, relay, bench, redis

    def accept(self, url: str, task: str = "add", *args: Any, **given: Any) -> str:
        args = args or ((1, 2) if task == "add" else ())
        return accept_calls(app, [Call(JOB + task, list(args), callback_url=url, **given)])[0]

    def round(self) -> list[str]:
        """Send and run what is due, once."""
        self.relay.round()
        return self.bench.work()

    def run(self) -> None:
        """Run the jobs and what tells of them."""
        self.round()
        self.round()

    def later(self, seconds: float) -> None:
        """Let so much time pass for what waits, and for hosts that failed."""
        sql = "UPDATE jobs SET available_at = clock_timestamp(), created_at = created_at - %s * interval '1 s'"
        self.db.execute(sql, (seconds,))
        for key in self.redis.scan_iter("holdfast:circuit:*"):
            self.redis.hset(key, "until", 0)
        time.sleep(0.15)  # for which the relay leaves a line alone that was empty

    def deliveries(self) -> list[dict[str, Any]]:
        rows = self.db.execute("""
            SELECT id, created_at FROM jobs WHERE task = 'webhook.deliver'
            UNION SELECT id, created_at FROM job_history WHERE task = 'webhook.deliver' ORDER BY created_at
        """).fetchall()
        return [manage.show(self.db, delivery) for delivery, _ in rows]


@pytest.fixture
def hook(db: Conn, relay: Relay, bench: Bench, redis: Redis) -> Hook:
    return Hook(db, relay, bench, redis)


def verified(seen: Any, secret: str = SECRET) -> dict[str, Any]:
    """Return what a request says, if the library's own verifier takes it."""
    told: dict[str, Any] = Webhook(secret).verify(seen.body, seen.headers)
    return told


# ---- what is told


def test_end_of_a_job_is_told_once_and_signed(hook: Hook, site: Site) -> None:
    job_id = hook.accept(site.url("/hook?a=1"), metadata={"order": 7}, caller="shop")
    hook.run()
    hook.run()
    [seen] = site.seen
    told = verified(seen)
    assert (seen.method, seen.path, seen.headers["content-type"]) == ("POST", "/hook?a=1", "application/json")
    data = told["data"]
    assert told["type"] == "job.succeeded"
    assert {name: data[name] for name in ("id", "task", "state", "result", "error", "metadata")} == {
        "id": job_id, "task": "tests.sample_tasks.add", "state": "succeeded", "result": 3, "error": None, "metadata": {"order": 7}
    }  # fmt: skip
    assert data["created_at"] <= data["started_at"] <= data["finished_at"] == told["timestamp"]
    [delivery] = hook.deliveries()
    assert (delivery["state"], delivery["parent_id"], delivery["caller"]) == ("succeeded", job_id, "shop")
    assert seen.headers["webhook-id"] == delivery["id"]


def test_signature_over_another_body_is_not_taken(hook: Hook, site: Site) -> None:
    hook.accept(site.url())
    hook.run()
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(site.seen[0].body + b" ", site.seen[0].headers)


def test_what_tells_of_no_job_is_not_signed(hook: Hook, site: Site) -> None:
    """Whoever may enqueue may call any task, and would have the house's signature on a text of theirs."""
    forged = {"url": site.url(), "host": "127.0.0.1", "payload": '{"type":"job.succeeded","data":{"id":"yours"}}'}
    job_id = accept_calls(app, [Call(webhooks.deliver.name, kwargs=forged, caller="stranger")])[0]
    hook.run()
    assert site.seen == []
    row = hook.db.execute("SELECT state, error FROM job_history WHERE id = %s", (job_id,)).fetchone()
    assert row is not None
    assert row[0] == "failed"
    assert "it tells of no job" in row[1]


def _cancel(hook: Hook, job_id: str) -> None:
    app.control.cancel(job_id)


def _expire(hook: Hook, job_id: str) -> None:
    hook.db.execute("UPDATE jobs SET expires_at = clock_timestamp() - interval '1 s' WHERE id = %s", (job_id,))
    hook.relay.expire()


def _run(hook: Hook, job_id: str) -> None:
    hook.round()


def _forget_it(hook: Hook, job_id: str) -> None:
    """Let the row be one that nobody can send."""
    hook.db.execute("UPDATE jobs SET message = '{}', dispatch_epoch = NULL, dispatched_at = NULL WHERE id = %s", (job_id,))
    hook.redis.flushall()
    hook.relay.round()


ENDS: dict[str, tuple[str, tuple[Any, ...], Callable[[Hook, str], None]]] = {
    "succeeded": ("silent", (1,), _run),
    "failed": ("fail", (), _run),
    "failed by hand": ("own_state", (), _run),
    "discarded by itself": ("ignore", (), _run),
    "discarded for good": ("reject", ("/dev/null", False), _run),
    "cancelled": ("add", (), _cancel),
    "expired": ("add", (), _expire),
    "discarded unsent": ("add", (), _forget_it),
}


@pytest.mark.parametrize("end", ENDS)
def test_each_way_to_end_is_told(hook: Hook, site: Site, end: str) -> None:
    task, args, how = ENDS[end]
    job_id = hook.accept(site.url(), task, *args)
    how(hook, job_id)
    [delivery] = hook.deliveries()
    payload = json.loads(json.loads(delivery["message"]["body"])[1]["payload"])
    state = manage.show(hook.db, job_id)["state"]
    assert (payload["type"], payload["data"]["id"]) == (f"job.{state}", job_id)
    assert end.startswith(state)
    assert state == "succeeded" or payload["data"]["error"]


def test_delivery_is_made_by_the_commit_that_ends_the_job(hook: Hook, site: Site) -> None:
    job_id = hook.accept(site.url())
    with hook.db.transaction():
        assert settle.finish(hook.db, job_id, Guard.waiting(), Outcome(settle.JobState.CANCELLED))
        assert len(hook.deliveries()) == 1
        raise psycopg.Rollback
    assert hook.deliveries() == []


def test_job_without_a_callback_makes_no_delivery(hook: Hook) -> None:
    tasks.add.delay(1, 2)
    hook.round()
    assert hook.deliveries() == []


def test_large_result_is_left_out_and_said_to_be(hook: Hook, site: Site) -> None:
    hook.accept(site.url(), "echo", "x" * 300_000)
    hook.run()
    data = verified(site.seen[0])["data"]
    assert (data["result"], data["result_omitted"]) == (None, True)


# ---- receivers that do not take it


def test_receiver_that_was_down_for_an_hour_is_told_once_when_it_is_up(hook: Hook, site: Site) -> None:
    site.replies = [reply(500)]
    hook.accept(site.url())
    hook.run()
    waited_s = 0.0
    while waited_s < 3600:
        [delivery] = hook.deliveries()
        assert delivery["state"] == "scheduled"
        wait_s = max(1.0, (delivery["available_at"] - delivery["created_at"]).total_seconds())
        hook.later(wait_s)
        waited_s += wait_s
        hook.round()
    failures = len(site.seen)
    assert failures >= 5
    site.replies = [reply(200)]
    hook.later(1800)
    hook.round()
    hook.later(1800)
    hook.round()
    assert len(site.seen) == failures + 1
    verified(site.seen[-1])
    assert len({seen.headers["webhook-id"] for seen in site.seen}) == 1
    assert len({seen.body for seen in site.seen}) == 1
    moments = [int(seen.headers["webhook-timestamp"]) for seen in site.seen]
    assert moments == sorted(moments)
    [delivery] = hook.deliveries()
    assert (delivery["state"], delivery["attempt"]) == ("succeeded", failures + 1)


def hang(handler: Any) -> None:
    time.sleep(1.0)
    hang_up(handler)


@pytest.mark.parametrize(
    ("step", "told"),
    [(reply(500), "answered 500"), (reply(404), "answered 404"), (redirect("http://127.0.0.1:9/"), "answered 302"),
     (hang_up, "did not"), (hang, "did not end within"), (reply(429, headers={"Retry-After": "1000"}), "answered 429")],
    ids=["500", "404", "redirect", "hangs up", "hangs", "429"],
)  # fmt: skip
def test_receiver_that_does_not_take_it_is_tried_again(
    hook: Hook, site: Site, step: Reply, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "TIMEOUT_S", 0.4)
    site.replies = [step, reply(200)]
    hook.accept(site.url())
    hook.run()
    [delivery] = hook.deliveries()
    assert (delivery["state"], told in delivery["error"]) == ("scheduled", True)
    wait_s = (delivery["available_at"] - delivery["created_at"]).total_seconds()
    assert 1000 <= wait_s < 1010 if "429" in told else wait_s < 60
    hook.later(2000)
    hook.round()
    assert [d["state"] for d in hook.deliveries()] == ["succeeded"]
    assert len(site.seen) == 2


def test_receiver_that_is_gone_is_not_told_again(hook: Hook, site: Site) -> None:
    site.replies = [reply(410)]
    hook.accept(site.url())
    hook.run()
    assert [d["state"] for d in hook.deliveries()] == ["failed"]


def test_delivery_is_given_up_after_a_day(hook: Hook, site: Site) -> None:
    site.replies = [reply(500)]
    hook.accept(site.url())
    hook.run()
    hook.later(90_000)
    hook.round()
    assert [d["state"] for d in hook.deliveries()] == ["failed"]


def test_answer_of_the_receiver_is_told_to_nobody(hook: Hook, site: Site) -> None:
    site.replies = [reply(500, b"inner secret")]
    hook.accept(site.url("/token"))
    hook.run()
    [delivery] = hook.deliveries()
    assert "inner secret" not in str({**delivery, "message": ""})
    assert "/token" not in delivery["error"]


def test_host_that_fails_again_and_again_is_left_alone_by_all_its_deliveries(hook: Hook, site: Site) -> None:
    site.replies = [reply(500)]
    for _ in range(8):
        hook.accept(site.url())
    hook.round()
    for _ in range(4):
        hook.round()
    assert len(site.seen) == 5
    spared = [d for d in hook.deliveries() if d["attempt"] == 0]
    assert len(spared) == 3
    assert all("failed again and again" in d["error"] for d in spared)
    site.replies = [reply(200)]
    for _ in range(3):
        hook.later(600)
        hook.round()
    assert {d["state"] for d in hook.deliveries()} == {"succeeded"}


def test_deliveries_of_one_job_go_in_order(hook: Hook, site: Site) -> None:
    site.replies = [reply(500), reply(200)]
    job_id = hook.accept(site.url(), "fail")
    hook.run()
    hook.redis.delete(keys.job_lock(job_id))  # as it is soon by itself
    manage.replay(hook.db, job_id)
    hook.run()
    assert len(site.seen) == 1, "the second waits for the first"
    assert [d["attempt"] for d in hook.deliveries()] == [1, 0]
    for _ in range(3):
        hook.later(600)
        hook.round()
    ids = [seen.headers["webhook-id"] for seen in site.seen]
    first, second = (d["id"] for d in hook.deliveries())
    assert ids == [first, first, second]


# ---- secrets


def test_old_and_new_secret_both_verify_while_they_overlap(hook: Hook, site: Site, conf: Callable[..., None]) -> None:
    conf(webhook_secrets=f"{SECRET},{OLD}")
    hook.accept(site.url())
    hook.run()
    verified(site.seen[0], SECRET)
    verified(site.seen[0], OLD)
    conf(webhook_secrets=SECRET)
    hook.accept(site.url())
    hook.run()
    verified(site.seen[1], SECRET)
    with pytest.raises(WebhookVerificationError):
        verified(site.seen[1], OLD)


def test_callers_own_secret_signs_for_it_alone(hook: Hook, site: Site, conf: Callable[..., None]) -> None:
    conf(webhook_secrets=f"shop:{OLD},{SECRET}")
    hook.accept(site.url(), caller="shop")
    hook.run()
    hook.accept(site.url(), caller="other")
    hook.run()
    verified(site.seen[0], OLD)
    verified(site.seen[1], SECRET)
    for number, secret in ((0, SECRET), (1, OLD)):
        with pytest.raises(WebhookVerificationError):
            verified(site.seen[number], secret)


def test_callback_waits_for_a_secret_to_sign_it_with(hook: Hook, site: Site, conf: Callable[..., None]) -> None:
    conf(webhook_secrets="")
    hook.accept(site.url())
    hook.run()
    [delivery] = hook.deliveries()
    assert (delivery["state"], "HOLDFAST_WEBHOOK_SECRETS" in delivery["error"]) == ("scheduled", True)
    conf(webhook_secrets=SECRET)
    hook.later(600)
    hook.round()
    verified(site.seen[0])


# ---- where it may not go


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "[::ffff:127.0.0.1]", "[::1]",
                                  "169.254.169.254", "10.0.0.1", "[fd00:ec2::254]"])  # fmt: skip
def test_address_inside_is_not_called(hook: Hook, site: Site, conf: Callable[..., None], host: str) -> None:
    conf(http_allow_private=0)
    hook.accept(site.url(host=host))
    hook.run()
    [delivery] = hook.deliveries()
    assert delivery["state"] == "failed"
    assert "may not be called" in delivery["error"] or "Invalid IPv4 address" in delivery["error"]
    assert site.connections == 0


def test_redirect_is_not_followed(site: Site) -> None:
    for inside in _serve():
        site.replies = [redirect(inside.url(), status) for status in (301, 302, 303, 307, 308)]
        for status in (301, 302, 303, 307, 308):
            with pytest.raises(HttpStatusError) as caught:
                post(site.url(), "{}", {}, outbound.Policy(100, outbound.anyone))
            assert caught.value.status == status
        assert inside.connections == 0


def test_name_that_is_inside_at_the_second_look_is_not_called(site: Site) -> None:
    answers = iter([["93.184.215.14", "127.0.0.1"], ["127.0.0.1"]])
    with pytest.raises(AddressRefused):
        post(site.url(host="rebinds.test"), "{}", {}, outbound.Policy(100, resolve=lambda host, port: next(answers)))
    assert site.connections == 0


# ---- the circuit


def test_circuit_lets_one_try_when_its_time_is_over(redis: Redis, env: dict[str, str]) -> None:
    circuit = Circuit("party", failures=2, open_s=60)
    circuit.failed()
    assert circuit.wait_s() == 0
    circuit.failed()
    assert 59 < circuit.wait_s() <= 60
    redis.hset(keys.circuit("party"), "until", 0)
    assert circuit.wait_s() == 0
    assert 29 < circuit.wait_s() <= 30, "another must wait for the one that tries"
    circuit.failed()
    assert 119 < circuit.wait_s() <= 120
    circuit.succeeded()
    assert circuit.wait_s() == 0
    assert redis.ttl(keys.circuit("party")) == -2


def test_circuit_is_closed_while_redis_is_away(stack: Any, env: dict[str, str]) -> None:
    circuit = Circuit("party", failures=1)
    circuit.failed()
    stack.redis.freeze()
    assert circuit.wait_s() == 0
    circuit.failed()


# ---- the commands


def test_deliveries_are_listed_shown_and_made_again(hook: Hook, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.replies = [reply(410)]
    job_id = hook.accept(site.url("/in"))
    hook.run()
    assert invoke(["webhooks", "ls", "--json"]) == 0
    [listed] = json.loads(capsys.readouterr().out)
    assert (listed["job"], listed["state"], listed["url"], listed["type"]) == (job_id, "failed", site.url("/in"), "job.succeeded")
    assert invoke(["webhooks", "ls", "--job", job_id]) == 0
    assert listed["id"] in capsys.readouterr().out
    assert invoke(["webhooks", "show", listed["id"], "--json"]) == 0
    assert json.loads(json.loads(capsys.readouterr().out)["payload"])["data"]["id"] == job_id
    site.replies = [reply(200)]
    hook.redis.delete(keys.job_lock(listed["id"]))
    assert invoke(["webhooks", "redeliver", "--state", "failed", "--yes"]) == 0
    hook.round()
    assert [seen.headers["webhook-id"] for seen in site.seen] == [listed["id"]] * 2
    assert [d["state"] for d in hook.deliveries()] == ["succeeded"]
    assert invoke(["webhooks", "show", job_id]) == 5
