"""The HTTP server that `http.call` and callbacks are pointed at: it answers 200 and counts who called."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class CountingServer:
    """A server on a free loopback port, for as long as it is entered."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    @property
    def callback_url(self) -> str:
        return f"{self.url}callback"

    def requests(self) -> dict[str, int]:
        """Return the requests so far by their `Idempotency-Key`, which is the job's id."""
        with self._lock:
            return dict(self._counts)

    def callbacks(self) -> dict[str, int]:
        """Return how often it was told of the end of each job, by its id."""
        with self._lock:
            return dict(self._told)

    def _note(self, path: str, key: str, body: bytes) -> None:
        with self._lock:
            if path == "/callback":
                self._told[json.loads(body)["data"]["id"]] += 1
            else:
                self._counts[key] += 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        note = self._note

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                note(self.path, self.headers.get("Idempotency-Key") or "", body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing: the counts tell."""

        return Handler

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="demo-counting", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
