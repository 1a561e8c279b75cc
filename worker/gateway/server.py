"""The server: uvicorn, with bounded headers, problems for what is no HTTP, and an end that nobody's wait can hold up."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any

import h11
import msgspec
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from worker.errors import SettingsError
from worker.gateway.problems import MEDIA_TYPE, Problem
from worker.gateway.state import Gateway

#: Most bytes of a request's line and headers together.
MOST_HEADER_BYTES = 32_768
#: Seconds a connection may be silent between two requests.
_KEEP_ALIVE_S = 30
#: Seconds that the headers of a request may take, from its first byte or, for the first one, from the connection.
HEADERS_S = 10.0
#: Connections that may wait to be accepted.
_BACKLOG = 2048


class Protocol(H11Protocol):
    """Speaks HTTP/1.1; what it cannot read it answers with a problem, too, and for what does not come it does not wait long."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, and wait for the first request."""
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came: uvicorn would wait for ever for the rest of a request's headers, a byte at a time."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._deadline is None and self.conn.trailing_data[0]:
            self._await_headers()

    def _await_headers(self) -> None:
        self._deadline = self.loop.call_later(HEADERS_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or has headers beyond the bound, and close."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # in the middle of an answer there is no place for another
            return
        hint = getattr(sys.exc_info()[1], "error_status_hint", 400)
        problem = (
            Problem(431, f"The request line and headers are larger than {MOST_HEADER_BYTES:,} bytes.")
            if hint == 431
            else Problem(400, "This is not a request of HTTP/1.1.")
        )
        body = msgspec.json.encode(problem.document())
        headers = [("Content-Type", MEDIA_TYPE), ("Content-Length", str(len(body))), ("Connection", "close")]
        for event in (h11.Response(status_code=problem.status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class GatewayServer(Server):
    """A server that lets nobody wait any more once it is asked to end, and then answers all that are left."""

    def __init__(self, config: Config, gateway: Gateway, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._gateway, self._ready = gateway, ready

    async def startup(self, sockets: Any = None) -> None:
        """Begin, and say so."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: Any = None) -> None:
        """End long polls and streams of events, finish what is being answered, and close."""
        self._gateway.watch.end_waits()
        await super().shutdown(sockets)
        self._captured_signals.clear()  # it was asked to end and has: that is no death by a signal


def listen(host: str, port: int) -> socket.socket:
    """Return a socket on which requests wait from now on. Raises `SettingsError` when the address or port cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG)
    except (OSError, OverflowError) as exc:
        raise SettingsError(f"--host, --port: cannot listen on {host}:{port} ({exc})") from exc


def make_server(app: Any, gateway: Gateway, *, grace_s: float = 1.0, ready: Callable[[], None] = lambda: None) -> GatewayServer:
    """Return a server of this application; `ready` is told when it begins, and after `grace_s` seconds its end waits no more."""
    config = Config(
        app, http=Protocol, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, h11_max_incomplete_event_size=MOST_HEADER_BYTES, backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S, timeout_graceful_shutdown=max(1, round(grace_s)),
    )  # fmt: skip
    return GatewayServer(config, gateway, ready)


def serve(server: Server, sock: socket.socket) -> None:
    """Serve on a socket until a signal ends it."""
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.serve(sockets=[sock]))
