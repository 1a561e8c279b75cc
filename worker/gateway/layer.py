"""The outermost layer: ids of requests, bounded headers, one answer for whatever goes wrong, figures and lines in the log."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from prometheus_client import Counter, Histogram
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.clock import uuid7
from worker.gateway.problems import Problem, problem_of
from worker.telemetry import log

logger = log(__name__)

REQUESTS = Counter("holdfast_http_requests", "Requests the gateway answered, by route and status.", ["method", "route", "status"])
SECONDS = Histogram("holdfast_http_seconds", "Seconds from a request's headers to its last byte, by route.", ["route"],
                    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60))  # fmt: skip

#: Most headers of a request; their bytes are bounded by the server, before it has an idea of a request.
MOST_HEADERS = 64
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE")
#: On every answer that does not say otherwise: it is data, for whoever asked, and nothing a browser should make more of.
_ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


Endpoint = Callable[[Request], Awaitable[Response]]


class _Route(NamedTuple):
    path_format: str


class Layer:
    """Wraps the application. What a request brings along is put in `scope["state"]`: its id, and headers for its answer.

    The endpoints of `hot`, by method and path, are called at once: finding a route and what it depends on costs FastAPI more than
    accepting a job does.
    """

    def __init__(self, app: ASGIApp, hot: Mapping[tuple[str, str], Endpoint]) -> None:
        self.app = app
        self._hot = {name: (endpoint, _Route(name[1])) for name, endpoint in hot.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = _request_id(scope)
        headers: list[tuple[bytes, bytes]] = []
        state["headers"] = headers
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name for name, _ in message["headers"]}
                added = [*(header for header in _ALWAYS if header[0] not in given), *headers]
                message["headers"] = [*message["headers"], (b"x-request-id", state["request_id"].encode()), *added]
            await send(message)

        try:
            if len(scope["headers"]) > MOST_HEADERS:
                raise Problem(431, f"The request has more than {MOST_HEADERS} headers.")
            await self._answer(scope, receive, send_on)
        except Exception as exc:
            problem = problem_of(exc)
            if problem is None:
                logger.exception("a request failed", request=state["request_id"], route=_route(scope))
                problem = Problem(500, "The gateway failed; its log says why under this request's id.")
            if not status:
                await problem.response(f"urn:holdfast:request:{state['request_id']}")(scope, receive, send_on)
        finally:
            _count(scope, status, time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        hot = self._hot.get((scope["method"], scope["path"]))
        if hot is None:
            await self.app(scope, receive, send)
            return
        endpoint, scope["route"] = hot
        scope["app"] = self.app
        response = await endpoint(Request(scope, receive))
        await response(scope, receive, send)


def _request_id(scope: Scope) -> str:
    """Return the id the client gave its request, if it is one that can stand in a log, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return uuid7()


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path_format", None) or "none")


def _count(scope: Scope, status: int, seconds: float) -> None:
    route, method = _route(scope), scope["method"]
    REQUESTS.labels(method if method in _METHODS else "other", route, status).inc()
    SECONDS.labels(route).observe(seconds)
    # Paths and names come from outside: they stand in the log as values, which its renderers escape.
    if status in (401, 403) or status >= 500:
        client = (scope.get("client") or ("unknown",))[0]
        logger.warning("a request was refused" if status < 500 else "a request failed", method=method, path=scope["path"][:200],
                       status=status, request=scope["state"]["request_id"], client=client)  # fmt: skip
