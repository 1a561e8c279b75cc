"""The connection of one call: to the configured API alone, none longer than the call may take, and no more than can be kept."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import httpcore2
import httpx2

from worker.errors import HttpUnreachable
from worker.tasks.outbound import anyone, look_up
from worker.tasks.outbound.dialing import Deadline, Dialer

#: Bytes of one answer that are read: far more than its bound of tokens makes, and nothing that fills a worker's memory.
MOST_BYTES = 33_554_432

#: Headers that are sent. The client's own tell about this machine, and those of its environment are not ours to send.
_SENT = frozenset((b"host", b"content-type", b"content-length", b"accept", b"transfer-encoding"))


class Transport(httpx2.BaseTransport):
    """The connection of one call; it knows no proxies, follows no redirects, and says whether anything was sent.

    Where it may go is for the settings to say, not for the job, so it also reaches private addresses: models run there.
    """

    def __init__(self, deadline: Deadline, *, has_key: bool) -> None:
        dialer: Any = Dialer(deadline, anyone, look_up)
        self._pool = httpcore2.ConnectionPool(ssl_context=_verified(), max_keepalive_connections=0, network_backend=dialer)
        self._headers = _SENT | {b"authorization"} if has_key else _SENT
        #: Whether the request has begun to go out: from then on it may have been worked on.
        self.sent = False

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and return its response, whose body is still to be read."""
        url = httpcore2.URL(
            scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port, target=request.url.raw_path
        )
        headers = [(name, value) for name, value in request.headers.raw if name.lower() in self._headers]
        headers += [(b"user-agent", b"holdfast"), (b"accept-encoding", b"identity"), (b"connection", b"close")]
        response = self._pool.handle_request(
            httpcore2.Request(request.method, url, headers=headers, content=request.stream, extensions={"trace": self._trace})
        )
        return httpx2.Response(response.status, headers=response.headers, stream=_Bounded(response))

    def _trace(self, event: str, info: Any) -> None:
        self.sent = self.sent or event.endswith("send_request_headers.started")

    def close(self) -> None:
        """Close the connection."""
        self._pool.close()


class _Bounded(httpx2.SyncByteStream):
    """A body of which no more is read than may be."""

    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        read = 0
        for part in self._response.iter_stream():
            read += len(part)
            if read > MOST_BYTES:
                raise HttpUnreachable(f"the answer is longer than {MOST_BYTES:,} bytes")
            yield part

    def close(self) -> None:
        self._response.close()


@lru_cache(maxsize=1)
def _verified() -> ssl.SSLContext:
    return httpx2.create_ssl_context(trust_env=False)
