"""One try to deliver a callback: posted once, to the very URL, and only a status of 200 to 299 counts as taken."""

from __future__ import annotations

from collections.abc import Mapping

from worker.clock import now
from worker.errors import HttpStatusError
from worker.tasks.outbound import Answer, Policy, call, parse_retry_after, prepare

#: Seconds a receiver has to answer; who needs longer should take the message down and answer.
TIMEOUT_S = 15.0
#: All of them are answers: a redirect is not followed, since it would carry what was signed to where nobody registered.
_ANSWERS = range(200, 600)


def post(url: str, body: str, headers: Mapping[str, str], policy: Policy) -> Answer:
    """Post a callback and return the receiver's answer.

    Raises `HttpStatusError` for an answer other than 200 to 299, and `HttpUnreachable`, `AddressRefused`, `InvalidRequest`.
    """
    request = prepare(url, "POST", {"content-type": "application/json", **headers}, body, TIMEOUT_S, list(_ANSWERS))
    answer = call(request, policy)
    if 200 <= answer.status <= 299:
        return answer
    after = answer.headers.get("retry-after")
    # What the receiver says is told to nobody: the callback's URL may be a way to look at a service inside.
    raise HttpStatusError(
        f"{request.url.host} answered {answer.status}", status=answer.status,
        retry_after_s=parse_retry_after(after, now()) if after else None,
    )  # fmt: skip
