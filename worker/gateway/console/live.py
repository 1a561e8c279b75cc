"""Parts of pages that change while the pages stand, told by server-sent events."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import wraps
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse

from worker.errors import HoldfastError
from worker.gateway.state import gateway_of

T = TypeVar("T")

#: Seconds between two looks at what a page shows.
EVERY_S = 2.0
#: Seconds after which a stream ends; the page comes again, and shows its session anew.
_LIFE_S = 30.0
#: Seconds within which a gateway that stops ends its streams.
_STOPPING_S = 0.5
#: How long ago something was changes by itself, in the page as well.
_AGO = re.compile(r"(<time [^>]*>)[^<]*")


#: What `shared` holds in this process.
_held: list[list[tuple[float, object]]] = []


def forget() -> None:
    """Read everything anew: another gateway begins in this process."""
    for held in _held:
        held.clear()


def shared(every_s: float) -> Callable[[Callable[[], T]], Callable[[], T]]:
    """Let all who look share what a function returns for so long: one reads for all, and the others wait for that."""

    def decorate(read: Callable[[], T]) -> Callable[[], T]:
        lock = threading.Lock()
        held: list[tuple[float, T]] = []
        _held.append(held)  # type: ignore[arg-type]

        @wraps(read)
        def latest() -> T:
            with lock:
                if not held or time.monotonic() - held[0][0] >= every_s:
                    found = read()
                    held[:] = [(time.monotonic(), found)]
                return held[0][1]

        return latest

    return decorate


def stream(request: Request, parts: Callable[[], Mapping[str, str]], *, every_s: float = EVERY_S) -> StreamingResponse:
    """Return a stream of a page's parts, each an event of its name with its HTML, sent when it is not what it was.

    `parts` runs in a thread. While a server is away the page keeps what it shows.
    """
    return StreamingResponse(_events(request, parts, every_s), media_type="text/event-stream",
                             headers={"X-Accel-Buffering": "no"})  # fmt: skip


async def _events(request: Request, parts: Callable[[], Mapping[str, str]], every_s: float) -> AsyncIterator[bytes]:
    watch, loop = gateway_of(request).watch, asyncio.get_running_loop()
    until, sent = loop.time() + _LIFE_S, dict[str, str]()
    yield b"retry: 1000\n\n"
    while loop.time() < until:
        try:
            found = await run_in_threadpool(parts)
        except HoldfastError:
            found = {}
        for name, html in found.items():
            if sent.get(name) != (seen := _AGO.sub(r"\1", html)):
                sent[name] = seen
                yield frame(name, html)
        due = loop.time() + every_s
        while loop.time() < due:
            if watch.stopping:
                return
            await asyncio.sleep(min(_STOPPING_S, every_s))


def frame(name: str, text: str) -> bytes:
    """Return an event as it goes over the wire."""
    lines = "".join(f"data: {line}\n" for line in text.splitlines())
    return f"event: {name}\n{lines}\n".encode()
