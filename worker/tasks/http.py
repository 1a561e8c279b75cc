"""The job `http.call`: an HTTP call with retries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from worker.app import app
from worker.errors import HttpError, HttpStatusError, HttpUnreachable, InvalidRequest
from worker.settings import settings
from worker.tasks import outbound

#: Statuses that speak of the moment, not of the call. 501 is no such: what is not implemented now is not in a minute.
_PASSING = frozenset((408, 425, 429, *range(500, 600))) - {501}


@app.task(name="http.call", bind=True)  # type: ignore[untyped-decorator]
def http_call(
    self: Any,
    url: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: Any = None,
    timeout_s: float = 30.0,
    expect: Sequence[int] | None = None,
    max_retries: int = 8,
) -> dict[str, Any]:
    """Call a URL; return `status`, `headers`, `body`, `truncated` and `elapsed_s`.

    A `body` that is a text is sent as it is, anything else as JSON. `expect` lists the good statuses (200 to 299). The job's id
    goes along as `Idempotency-Key`, the same at every try, unless the caller set one. What may pass is tried again up to
    `max_retries` times: broken connections, timeouts, 408, 425, 429 and 5xx but 501. Anything else fails the job at once:
    `InvalidRequest`, `AddressRefused`, `HttpRedirectError`, `HttpStatusError`.
    """
    if type(max_retries) is not int or max_retries < 0:
        raise InvalidRequest(f"max_retries {max_retries!r}: must be a whole number from 0 up")
    request = outbound.prepare(url, method, headers, body, timeout_s, expect)
    if self.request.id:
        request = request.with_key(self.request.id)
    conf = settings()
    policy = outbound.Policy(conf.http_max_bytes, outbound.anyone if conf.http_allow_private else outbound.public_only)
    try:
        return asdict(outbound.call(request, policy))
    except (HttpUnreachable, HttpStatusError) as exc:
        if not _may_pass(exc):
            raise
        wait_s = outbound.delay_s(self.request.retries, getattr(exc, "retry_after_s", None))
        raise self.retry(exc=exc, countdown=wait_s, max_retries=max_retries) from exc


def _may_pass(exc: HttpError) -> bool:
    return isinstance(exc, HttpUnreachable) or (isinstance(exc, HttpStatusError) and exc.status in _PASSING)
