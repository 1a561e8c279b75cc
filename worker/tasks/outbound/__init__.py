"""Calls to the world outside, for `http.call`; it knows nothing of Celery."""

from worker.tasks.outbound.addresses import Judge, anyone, public_only
from worker.tasks.outbound.answer import Answer
from worker.tasks.outbound.backoff import delay_s, parse_retry_after
from worker.tasks.outbound.calling import MAX_REDIRECTS, Policy, call
from worker.tasks.outbound.dialing import Resolver, look_up
from worker.tasks.outbound.request import Request, prepare

__all__ = [
    # the call
    "prepare", "call", "Request", "Answer", "MAX_REDIRECTS",
    # where it may go
    "Policy", "Judge", "public_only", "anyone", "Resolver", "look_up",
    # when it is tried again
    "delay_s", "parse_retry_after",
]  # fmt: skip
