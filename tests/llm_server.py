"""A server that speaks the chat completions of the OpenAI API: streams, counts, limits, refuses, stalls and hangs up as told."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Handler"], None]


@dataclass
class Seen:
    """A request as the server got it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Api:
    """The server: `replies` are given in turn, the last one for ever."""

    port: int
    replies: list[Reply] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def next(self) -> Reply:
        with self._lock:
            return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    api: Api

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        self.api.seen.append(Seen(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        self.body = body
        self.api.next()(self)

    def start(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, data: bytes) -> None:
        """Send a part of a chunked body; an empty one ends it."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def event(self, **chunk: Any) -> None:
        told = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": self.body["model"]}
        self.send(f"data: {json.dumps({**told, **chunk})}\n\n".encode())

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serve() -> Iterator[Api]:
    """Run a server for the length of a `with`."""
    api = Api(0, [answer()])

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: Any) -> None:
            pass  # callers that die or leave early are what is tested here

    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"api": api}))
    api.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()


def answer(
    *pieces: str,
    tokens_in: int = 12,
    tokens_out: int = 5,
    cached_in: int = 0,
    counts: bool = True,
    headers: dict[str, str] | None = None,
    wait_s: float = 0.0,
    cut_after: int | None = None,
    ends: bool = True,
) -> Reply:
    """Stream the pieces of an answer and its usage, as the API does.

    It begins after `wait_s`, hangs up after `cut_after` pieces; where it does not `end`, it stays silent after them.
    """

    def send(handler: Handler) -> None:
        time.sleep(wait_s)
        handler.start(200, "text/event-stream", {"Transfer-Encoding": "chunked", **(headers or {})})
        handler.event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        for number, piece in enumerate(pieces or ("Hel", "lo")):
            if number == cut_after:
                return hang_up(handler)
            handler.event(choices=[{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
        if not ends:
            time.sleep(30)
        handler.event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
        if counts and handler.body.get("stream_options", {}).get("include_usage"):
            details = {"prompt_tokens_details": {"cached_tokens": cached_in}} if cached_in else {}
            handler.event(choices=[], usage={"prompt_tokens": tokens_in, "completion_tokens": tokens_out,
                                             "total_tokens": tokens_in + tokens_out, **details})  # fmt: skip
        handler.send(b"data: [DONE]\n\n")
        handler.send(b"")

    return send


def refuse(status: int, message: str = "no", *, code: str | None = None, headers: dict[str, str] | None = None) -> Reply:
    """Answer with an error as the API tells it."""
    body = json.dumps({"error": {"message": message, "type": "error", "param": None, "code": code}}).encode()

    def send(handler: Handler) -> None:
        handler.start(status, "application/json", {"Content-Length": str(len(body)), **(headers or {})})
        handler.wfile.write(body)

    return send


def events(*lines: bytes) -> Reply:
    """Stream these lines as they are."""

    def send(handler: Handler) -> None:
        handler.start(200, "text/event-stream", {"Transfer-Encoding": "chunked"})
        for line in lines:
            handler.send(line)
        handler.send(b"")

    return send


def hang_up(handler: Handler) -> None:
    """Cut the connection."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
