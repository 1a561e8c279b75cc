"""Group commit: the jobs of requests that come together are accepted in one transaction, each answered after its commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from prometheus_client import Histogram

from worker.gateway.problems import Problem
from worker.ledger.group import accept_group
from worker.ledger.message import NewJob
from worker.telemetry import log

GROUPS = Histogram("holdfast_http_group_jobs", "Jobs accepted in one transaction.", buckets=[2**n for n in range(9)])

#: Seconds that a group waits for more, when the one before it was not alone either.
_PAUSE_S = 0.002
#: Most jobs of one transaction, so that the first need not wait long for the last.
_GROUP = 256
#: Jobs that may wait; more than that are told to come again.
_WAITING = 10_000
#: Seconds after which a request is told that nobody knows: Postgres may hang without a word.
_PATIENCE_S = 30.0

logger = log(__name__)

Outcome = str | Exception


class GroupCommit:
    """Accepts jobs in groups: what arrives while one transaction runs makes up the next.

    **Guarantee:** `accept` returns after the commit, and a job that cannot be accepted fails alone. When the process dies, those
    that were not answered may be there or not; a repeat with the same idempotency key finds out.
    """

    def __init__(self, write: Callable[[Sequence[NewJob], Callable[[list[Outcome]], None]], None] = accept_group) -> None:
        self._write = write
        self._waiting: list[tuple[NewJob, asyncio.Future[str]]] = []
        self._bell = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="holdfast-accept")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Accept what waits, and end."""
        while self._waiting:
            await asyncio.sleep(_PAUSE_S)
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await asyncio.to_thread(self._thread.shutdown)

    async def accept(self, job: NewJob) -> str:
        """Return the id under which a job is known once it is committed. Raises as `ledger.accept`, and `Problem` 503."""
        if len(self._waiting) >= _WAITING:
            raise Problem(503, f"{_WAITING:,} jobs are waiting to be accepted.", code="overloaded", headers={"Retry-After": "1"})
        known: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, known))
        self._bell.set()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await known
        except TimeoutError:
            raise Problem(503, "Postgres has not answered yet; the job may be accepted still. Repeat the request with its key.",
                          code="ledger_unavailable", headers={"Retry-After": "5"}) from None  # fmt: skip

    async def _run(self) -> None:
        loop, alone = asyncio.get_running_loop(), True
        while True:
            await self._bell.wait()
            if not alone:
                await asyncio.sleep(_PAUSE_S)
            group, self._waiting = self._waiting[:_GROUP], self._waiting[_GROUP:]
            if not self._waiting:
                self._bell.clear()
            # One whose client has given up is not begun; it was told that nobody knows.
            group = [(job, known) for job, known in group if not known.done()]
            alone = len(group) <= 1
            if group:
                GROUPS.observe(len(group))
                await loop.run_in_executor(self._thread, self._accept, loop, group)

    def _accept(self, loop: asyncio.AbstractEventLoop, group: list[tuple[NewJob, asyncio.Future[str]]]) -> None:
        """Accept a group, in the thread. Whatever fails here fails for those in it, not for those behind."""
        told = False

        def tell(outcomes: list[Outcome]) -> None:
            nonlocal told
            told = True
            loop.call_soon_threadsafe(_settle, [known for _, known in group], outcomes)

        try:
            self._write([job for job, _ in group], tell)
        except Exception as exc:
            if told:  # The jobs are there, and the relay sends what was not.
                logger.exception("accepted jobs could not be published")
            else:
                tell([exc] * len(group))


def _settle(waiting: list[asyncio.Future[str]], outcomes: list[Outcome]) -> None:
    for known, outcome in zip(waiting, outcomes, strict=True):
        if known.done():
            continue
        if isinstance(outcome, Exception):
            known.set_exception(outcome)
        else:
            known.set_result(outcome)
