"""One HTTP call to the outside, bounded in time, size, hops and reach."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import lru_cache

import httpcore
import httpx

from worker.clock import now
from worker.errors import HttpRedirectError, HttpStatusError, HttpUnreachable, InvalidRequest
from worker.tasks.outbound.addresses import Judge, public_only
from worker.tasks.outbound.answer import Answer, kept, read_body, text_of
from worker.tasks.outbound.backoff import parse_retry_after
from worker.tasks.outbound.dialing import Deadline, Dialer, Resolver, look_up
from worker.tasks.outbound.request import Request, origin, redirected

#: Redirects that are followed; a chain that is longer is most often a circle.
MAX_REDIRECTS = 5
#: Characters of an unexpected answer's body that its error quotes.
_QUOTED = 300
#: Statuses that ask to go elsewhere.
_REDIRECTS = frozenset((301, 302, 303, 307, 308))


@dataclass(frozen=True, slots=True)
class Policy:
    """What calls may reach and read. `tls` is for a certificate authority of one's own."""

    max_bytes: int
    judge: Judge = public_only
    resolve: Resolver = look_up
    tls: ssl.SSLContext | None = None


def call(request: Request, policy: Policy) -> Answer:
    """Make the call, follow its redirects, and return an answer with an expected status.

    Raises `AddressRefused`, `HttpRedirectError`, `HttpStatusError`, and `HttpUnreachable` (`HttpTimeout`), after which a repeat
    may help. `timeout_s` holds for everything together: names, connections, redirects, every byte of the answer.

    A body over `max_bytes` (counted after unpacking) is cut off rather than refused: by then the call has had its effect, and a
    failed job would be made again.

    **Guarantee:** no connection is made to an address that the policy's judge refuses, however it is written, looked up or
    redirected to.
    """
    deadline = Deadline(request.timeout_s)
    dialer = Dialer(deadline, policy.judge, policy.resolve)
    with httpcore.ConnectionPool(
        ssl_context=policy.tls or _verified(), max_keepalive_connections=0, network_backend=dialer
    ) as pool:
        for _ in range(MAX_REDIRECTS + 1):
            try:
                answer, target = _exchange(pool, request, policy, deadline)
            except httpcore.LocalProtocolError as exc:
                raise InvalidRequest(f"the request cannot be sent: {exc}") from exc
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as exc:
                raise HttpUnreachable(f"{origin(request.url)} did not answer properly: {exc or type(exc).__name__}") from exc
            if target is None:
                return _judged(request, answer)
            request = redirected(request, answer.status, target)
    raise HttpRedirectError(f"more than {MAX_REDIRECTS} redirects; the next would go to {origin(request.url)}")


@lru_cache(maxsize=1)
def _verified() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _exchange(pool: httpcore.ConnectionPool, request: Request, policy: Policy, deadline: Deadline) -> tuple[Answer, str | None]:
    """Send the request to where it now points; return the answer, or one without a body and where it sends us."""
    url = httpcore.URL(
        scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port, target=request.url.raw_path
    )
    # The body goes in one piece of known length: servers of old do not read chunks.
    with pool.stream(request.method, url, headers=_sent_headers(request), content=request.content) as response:
        headers = httpx.Headers(response.headers)
        target = headers.get("location") if response.status in _REDIRECTS and response.status not in request.expect else None
        content, truncated = b"", False
        if target is None:
            content, truncated = read_body(response.iter_stream(), headers.get("content-encoding", ""), policy.max_bytes)
        text = text_of(content, headers.get("content-type", ""))
        return Answer(response.status, kept(headers), text, truncated, round(deadline.elapsed, 3)), target


def _sent_headers(request: Request) -> list[tuple[bytes, bytes]]:
    headers = {"user-agent": "holdfast", "accept": "*/*", **request.headers}
    # One connection a request, and only the packing whose unpacking is bounded here.
    headers |= {"accept-encoding": "gzip", "connection": "close"}
    if request.content is not None or request.method in ("POST", "PUT", "PATCH"):
        headers["content-length"] = str(len(request.content or b""))
    return [(b"host", request.url.netloc), *((name.encode(), value.encode()) for name, value in headers.items())]


def _judged(request: Request, answer: Answer) -> Answer:
    if request.expects(answer.status):
        return answer
    after = answer.headers.get("retry-after")
    quoted = f": {answer.body[:_QUOTED].strip()}" if answer.body.strip() else ""
    raise HttpStatusError(
        f"{request.method} {origin(request.url)} answered {answer.status}{quoted}",
        status=answer.status, retry_after_s=parse_retry_after(after, now()) if after else None,
    )  # fmt: skip
