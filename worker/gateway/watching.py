"""Waiting for jobs to change: woken by Redis where it tells, and looking once a second for all who wait together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from worker.errors import HoldfastError
from worker.store import cache, keys
from worker.store.listening import Listener
from worker.telemetry import log

logger = log(__name__)

#: Seconds between two looks at the jobs that are waited for.
_LOOK_S = 1.0
_CHANNEL = keys.result("")


class Watched:
    """One job that is waited for; `bell` rings at its next change, and is then another one."""

    def __init__(self) -> None:
        self.bell = asyncio.Event()
        self.waiting = 0
        #: What was last seen of it; what is seen first rings as well, for it may have changed before.
        self.seen: Any = self

    def ring(self) -> None:
        """Wake who waits."""
        bell, self.bell = self.bell, asyncio.Event()
        bell.set()


class Watch:
    """The jobs that the requests of one process wait for.

    However many wait, one look a second asks for all their jobs. `look` returns, for keys of results in order, what is known.
    """

    def __init__(self, look: Callable[[Sequence[str]], list[Any]]) -> None:
        self._look = look
        self._jobs: dict[str, Watched] = {}
        self._listener = Listener(cache, self)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        #: Whether waiting is over for all.
        self.stopping = False

    def start(self) -> None:
        """Begin, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())

    def end_waits(self) -> None:
        """Let nobody wait any more."""
        self.stopping = True
        for watched in self._jobs.values():
            watched.ring()

    async def stop(self) -> None:
        """End."""
        self.end_waits()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @asynccontextmanager
    async def on(self, job_id: str) -> AsyncIterator[Watched]:
        """Watch a job. Take its bell before looking at it, and then wait: no change goes unnoticed that way."""
        watched = self._jobs.setdefault(job_id, Watched())
        watched.waiting += 1
        if watched.waiting == 1:
            self._listener.want(_CHANNEL + job_id)
        try:
            yield watched
        finally:
            watched.waiting -= 1
            if not watched.waiting:
                self._jobs.pop(job_id, None)
                self._listener.leave(_CHANNEL + job_id)

    async def wait(self, bell: asyncio.Event, seconds: float) -> bool:
        """Wait for a bell at most so long; tell whether it rang."""
        if self.stopping or seconds <= 0:
            return False
        try:
            async with asyncio.timeout(seconds):
                await bell.wait()
        except TimeoutError:
            return False
        return True

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            if not self._jobs:
                continue
            names = list(self._jobs)
            try:
                told = await asyncio.to_thread(self._look, [_CHANNEL + name for name in names])
            except HoldfastError as exc:  # those who wait look for themselves in the end, and say so
                logger.warning("jobs that are waited for cannot be looked at", error=str(exc))
                continue
            for name, text in zip(names, told, strict=True):
                watched = self._jobs.get(name)
                if watched is not None and watched.seen != text:
                    watched.seen = text
                    watched.ring()

    # ---- what the listener tells, in its own thread

    def heard(self, channel: str, message: bytes) -> None:
        """Learn that a job told something."""
        self._ring(channel)

    def listening(self, channel: str) -> None:
        """Learn that nothing is missed from now on: what was told before must be looked at once."""
        self._ring(channel)

    def deaf(self) -> None:
        """Learn that nobody tells; the looks go on."""

    def _ring(self, channel: str) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ring_here, channel.removeprefix(_CHANNEL))

    def _ring_here(self, job_id: str) -> None:
        if watched := self._jobs.get(job_id):
            watched.ring()
