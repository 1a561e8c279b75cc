"""The job `llm.chat`: a chat completion under the budgets of its subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import uniform
from typing import Any

from worker.app import app
from worker.clock import uuid7
from worker.engine.run import current
from worker.errors import HttpStatusError, HttpUnreachable, InvalidRequest, LimitExceeded
from worker.tasks import chat, outbound

#: Statuses that speak of the moment, not of the call; 429 is a limit and no failure.
_PASSING = frozenset((408, 425, *range(500, 600))) - {501}
#: What a job does that a budget or the provider refuses for now.
_ON_LIMIT = ("snooze", "fail")


@app.task(name="llm.chat", bind=True)  # type: ignore[untyped-decorator]
def llm_chat(
    self: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    model: str,
    user: str | None = None,
    subject: str | None = None,
    options: Mapping[str, Any] | None = None,
    timeout_s: float | None = None,
    cache: bool = False,
    on_limit: str = "snooze",
    max_retries: int = 4,
) -> dict[str, Any]:
    """Complete a chat; return `content`, `choices`, `usage`, `cached` and what else the API at `HOLDFAST_LLM_BASE_URL` tells.

    It counts in the budgets of `subject`, by default `HOLDFAST_LLM_SUBJECT`, and of its `user`. `options` go into the request as
    they are, as `{"temperature": 0, "max_completion_tokens": 300}`. With `cache` an equal call, at temperature 0, may be
    answered from memory. A budget or a provider that refuses for now puts the job off until there is room again, without an
    attempt, or fails it with `LimitExceeded` where `on_limit` is `"fail"`. `CostTooHigh` and `Unpriced`, which would never pass,
    fail it at once, and so do `InvalidRequest`, `InvalidLimit` and refusals of the API. Broken connections, timeouts, 408, 425
    and 5xx but 501 are tried again up to `max_retries` times; what such a try took is settled.
    """
    if on_limit not in _ON_LIMIT:
        raise InvalidRequest(f"on_limit {on_limit!r}: must be one of {', '.join(_ON_LIMIT)}")
    if type(max_retries) is not int or max_retries < 0:
        raise InvalidRequest(f"max_retries {max_retries!r}: must be a whole number from 0 up")
    request = chat.prepare(messages, model, subject=subject, user=user, options=options, timeout_s=timeout_s, cache=cache)
    from worker.tasks.chat.metered import complete  # takes a second, which a worker that never calls a model need not wait

    # Each claim of the job has a token of its own, so a repeated statement finds its call, and another attempt is another call.
    run = current()
    claim = run.claim if run is not None and run.claim.job_id == self.request.id else None
    try:
        return complete(request, claim.token.hex if claim else uuid7(), self.request.id)
    except LimitExceeded as exc:
        if on_limit == "fail" or claim is None:
            raise
        # Those who waited for the same moment do not all come back at it.
        raise self.snooze(exc.retry_after + uniform(0, min(60.0, 1 + exc.retry_after / 10)), str(exc)) from None
    except (HttpUnreachable, HttpStatusError) as exc:
        if isinstance(exc, HttpStatusError) and exc.status not in _PASSING:
            raise
        wait_s = outbound.delay_s(self.request.retries, getattr(exc, "retry_after_s", None))
        raise self.retry(exc=exc, countdown=wait_s, max_retries=max_retries) from None
