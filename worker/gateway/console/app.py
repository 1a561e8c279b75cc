"""The application of the console: its pages under sessions, its files without, and what every answer of it says to a browser."""

from __future__ import annotations

from types import SimpleNamespace

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.errors import HoldfastError
from worker.gateway.console import (
    account,
    audit,
    bulk,
    cache,
    callers,
    failing,
    flags,
    flower,
    job,
    joblive,
    jobs,
    leaderboards,
    limits,
    live,
    login,
    notes,
    operators,
    overview,
    queues,
    schedules,
    static,
    streams,
    webhooks,
    workers,
)
from worker.gateway.console.access import sessions
from worker.gateway.state import Gateway
from worker.live import SessionMiddleware
from worker.settings import settings

#: Where the console is mounted.
ROOT = "/console"
#: The modules with pages: each has `routes`.
PAGES = (
    login,
    account,
    overview,
    jobs,
    job,
    joblive,
    notes,
    bulk,
    queues,
    schedules,
    streams,
    webhooks,
    leaderboards,
    limits,
    flags,
    cache,
    callers,
    workers,
    operators,
    audit,
    flower,
)
_FILES = f"{ROOT}/static/"

#: A page runs scripts and styles of ours alone, none that stand in it, and nobody may frame it: what a job's arguments or a note
#: smuggle in is text, twice over.
_POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:", "connect-src 'self'",
    "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'",
))  # fmt: skip
_ALWAYS = (
    (b"content-security-policy", _POLICY.encode()), (b"referrer-policy", b"same-origin"), (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"), (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)  # fmt: skip


def routes() -> list[Route]:
    """Return the routes of all pages."""
    return [route for module in PAGES for route in module.routes]


class Console:
    """The console as an ASGI application, to be mounted at `ROOT`."""

    def __init__(self, gateway: Gateway) -> None:
        live.forget()
        pages = Starlette(routes=routes(), exception_handlers={
            HTTPException: failing.http_error, HoldfastError: failing.known_error, Exception: failing.unknown_error,
        })  # fmt: skip
        pages.state.gateway = gateway
        pages.router.redirect_slashes = False
        self._pages: ASGIApp = SessionMiddleware(pages, sessions(), insecure=not settings().console_tls)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        scope["route"] = SimpleNamespace(path_format=ROOT)  # figures tell one console, not each page of it

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_ALWAYS]
            await send(message)

        app = static.serve if scope["path"].startswith(_FILES) else self._pages
        await app(scope, receive, send_on)
