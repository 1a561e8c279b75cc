"""A metered call: reserved before, settled after by what it really took, and never counted twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from worker.cache import MISSING, Missing, Region
from worker.errors import BudgetNotRebuilt, CacheError, LedgerUnavailable, LimitExceeded, LoadFailed, StoreUnavailable
from worker.ledger import usage
from worker.ledger.usage import Actual
from worker.settings import settings
from worker.tasks.chat import room
from worker.tasks.chat.answer import Answer, Counted
from worker.tasks.chat.calling import Call
from worker.tasks.chat.request import Chat
from worker.telemetry import LLM_CALLS, OUTAGES, log

logger = log(__name__)

#: Seconds for which a spend is tried to be recorded while Postgres is away; the call has been made and cannot be taken back.
_PATIENCE_S = 10.0
#: Seconds to wait for a budget whose counters could not be loaded just now.
_LOAD_S = 1.0

#: Answers that are kept where a job allows it. No early refreshes, which nobody asked for and somebody would pay.
answers = Region("llm", ttl=3600.0, type=dict[str, Any], jitter=0.0, beta=0.0, max_back_off=5.0)


def complete(chat: Chat, call_id: str, job_id: str | None = None) -> dict[str, Any]:
    """Return the answer to a chat, and what it took, under the budgets of its subject.

    Raises `LimitExceeded` with `retry_after` when a budget or the provider refuses for now, `CostTooHigh` and `Unpriced` when a
    budget always does, and as `Call.make`. Then nothing of it stays reserved.

    **Guarantee:** a call is made only when its estimate was reserved under every budget of its subject, and its spend is recorded
    once, under `call_id`, whether it ends well, breaks or takes too long. When its process dies, what it reserved is free again
    within `llm_lease_s`, and nothing is recorded: nobody can tell what it took.
    """
    kept = answers.get(chat.digest) if chat.cache else MISSING
    if not isinstance(kept, Missing):
        return _told_again(kept)
    with _reserved(chat, call_id, job_id) as metered:
        if not chat.cache:
            return metered.run()
        try:
            got = answers.get_or_load(chat.digest, metered.run, settings().llm_cache_ttl_s)
        except LoadFailed as exc:
            why = f"an equal call failed a moment ago: {exc}"
            raise LimitExceeded(why, limit="llm cache", retry_after=exc.retry_after) from exc
        except CacheError:  # An answer that cannot be kept has been paid for all the same.
            if metered.result is None:
                raise
        return metered.result or _told_again(got)


def _told_again(kept: dict[str, Any]) -> dict[str, Any]:
    LLM_CALLS.labels("cached").inc()
    return {**kept, "usage": {"tokens_in": 0, "tokens_out": 0, "micros": 0, "estimated": False}, "cached": True}


class _Metered:
    """A reserved call: not made yet, under way, or ended."""

    def __init__(self, chat: Chat, call_id: str) -> None:
        self._chat, self._id = chat, call_id
        self._call: Call | None = None
        self.result: dict[str, Any] | None = None

    def run(self) -> dict[str, Any]:
        """Make the call and return what came of it; its spend is settled by then."""
        self._call = call = Call(self._chat)
        try:
            call.make()
        finally:
            # In any case, so also when the time limit of the job ends it in here.
            took, estimated = self._settle(call)
        usage_told = {"tokens_in": took.tokens_in, "tokens_out": took.tokens_out, "micros": took.micros, "estimated": estimated}
        self.result = {**call.answer.told(), "usage": usage_told, "cached": False}
        return self.result

    def _settle(self, call: Call) -> tuple[Actual, bool]:
        """Record what the call took: as its provider counted, else what was sent and what has arrived by estimate."""
        known = call.answer.counted
        took = _actual(self._chat, known or _estimated(self._chat, call.answer))
        if call.spent:
            LLM_CALLS.labels("settled" if known else "settled by estimate").inc()
            _record(self._id, took)
        return took, known is None

    def give_back(self) -> None:
        """Release what was reserved for a call that was not made or was refused; without Postgres it ends with its lease."""
        if self._call is None or not self._call.spent:
            LLM_CALLS.labels("released").inc()
            with suppress(LedgerUnavailable):
                usage.release(self._id)


def _estimated(chat: Chat, answer: Answer) -> Counted:
    return Counted(chat.tokens_in, answer.tokens_out)


def _actual(chat: Chat, counted: Counted) -> Actual:
    # A model without a price got so far only where no budget of money holds.
    micros = chat.price.of(*counted) if chat.price else 0
    return Actual(counted.tokens_in, counted.tokens_out, micros)


def _record(call_id: str, took: Actual) -> None:
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            usage.settle(call_id, took)
            return
        except LedgerUnavailable:
            if time.monotonic() > until:
                OUTAGES.labels("llm", "spend not recorded").inc()
                logger.error("the spend of a call could not be recorded", call=call_id, **took._asdict())
                raise
            time.sleep(0.5)


@contextmanager
def _reserved(chat: Chat, call_id: str, job_id: str | None) -> Iterator[_Metered]:
    """Hold a reservation for a call, its lease renewed meanwhile; released in the end unless the call was made."""
    estimate = chat.estimate
    room.check(chat, estimate.tokens)
    lease_s = settings().llm_lease_s
    try:
        reservation = usage.reserve(chat.subject, estimate, id=call_id, model=chat.model, job_id=job_id, lease_s=lease_s)
    except (BudgetNotRebuilt, StoreUnavailable) as exc:
        raise LimitExceeded(f"the budget of {chat.subject!r} is not loaded yet", limit=chat.subject, retry_after=_LOAD_S) from exc
    reservation.decision.check()
    metered = _Metered(chat, call_id)
    try:
        with _renewed(call_id, lease_s):
            yield metered
    finally:
        metered.give_back()


@contextmanager
def _renewed(call_id: str, lease_s: float) -> Iterator[None]:
    """Renew the lease of a reservation at a third of it, so that it ends soon after its process and not before its call."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(lease_s / 3):
            try:
                usage.renew(call_id, lease_s)
            except (LedgerUnavailable, StoreUnavailable):
                OUTAGES.labels("llm", "lease not renewed").inc()

    thread = threading.Thread(target=renew, name="holdfast-llm-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
