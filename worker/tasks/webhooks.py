"""The job `webhook.deliver`: it tells a job's callback URL of the job's end. The statement that ends the job makes it."""

from __future__ import annotations

from random import uniform
from typing import Any

from worker.app import app
from worker.clock import now
from worker.db import statement
from worker.errors import HttpStatusError, HttpUnreachable, InvalidJob, SettingsError
from worker.ledger import webhooks
from worker.limits import Circuit
from worker.settings import settings
from worker.tasks import outbound
from worker.tasks.webhook import post, secrets_for, signed_headers

#: Deliveries to one host at a time: one that hangs holds no more of the fleet. A policy `webhook-host` stands before it.
_LIMIT = "webhook-host:{kwargs[host]} 8 concurrent lease 1m local"
#: Seconds: the first wait is up to this long, and none is longer than half an hour, so that a day holds some fifty tries.
_BASE_S, _CAP_S = 5.0, 1800.0
#: Seconds after which a delivery looks again whether the one before it has gone.
_TURN_S = 30.0
#: Bytes of the answer that are read; nobody looks at more than its status.
_READ = 4096
#: The receiver does not want to be told any more.
_GONE = 410


@app.task(name=webhooks.TASK, bind=True, max_retries=None, limits=[_LIMIT])  # type: ignore[untyped-decorator]
def deliver(self: Any, *, url: str, host: str, payload: str) -> dict[str, Any]:
    """Post `payload`, signed by Standard Webhooks, and return the receiver's status and its time.

    It goes after earlier deliveries of the same job, and is tried again with growing waits, or as long as `Retry-After` says,
    for a day. 410 ends it at once, and so does an address that may not be called. What tells of no job is not signed: a task can
    be called by whoever may enqueue.
    """
    with statement() as conn:
        turn = webhooks.turn(conn, self.request.id)
    if turn.callback_url != url:
        raise InvalidJob("it tells of no job that is to be told of there")
    circuit = Circuit(f"webhook:{host}")
    if turn.before_s is not None:
        self.snooze(min(turn.before_s, _TURN_S) + uniform(0.1, 1.0), "waits for an earlier delivery of its job")
    if turn.age_s < settings().webhook_retry_s and (wait_s := circuit.wait_s()):
        self.snooze(wait_s + uniform(0.0, 1.0), f"waits for {host}, which failed again and again")
    try:
        answer = _post(self.request.id, url, payload, turn.caller)
    except (HttpStatusError, HttpUnreachable, SettingsError) as exc:
        _judge(circuit, exc)
        wait_s = outbound.delay_s(self.request.retries, getattr(exc, "retry_after_s", None), base_s=_BASE_S, cap_s=_CAP_S)
        if getattr(exc, "status", 0) == _GONE or turn.age_s + wait_s > settings().webhook_retry_s:
            raise
        raise self.retry(exc=exc, countdown=wait_s, max_retries=None) from exc
    circuit.succeeded()
    return {"status": answer.status, "elapsed_s": answer.elapsed_s}


def _post(delivery_id: str, url: str, payload: str, caller: str | None) -> outbound.Answer:
    conf = settings()
    headers = signed_headers(delivery_id, payload, secrets_for(caller, conf.webhook_secrets), now())
    judge = outbound.anyone if conf.http_allow_private else outbound.public_only
    return post(url, payload, headers, outbound.Policy(_READ, judge))


def _judge(circuit: Circuit, exc: Exception) -> None:
    """Count what speaks of the host being in trouble; an answer that only this delivery got does not."""
    if isinstance(exc, HttpUnreachable) or (isinstance(exc, HttpStatusError) and (exc.status >= 500 or exc.status == 429)):
        circuit.failed()
    elif isinstance(exc, HttpStatusError):
        circuit.succeeded()
