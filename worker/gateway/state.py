"""What the requests of one gateway share: the application, the group commit, and those who wait for jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request

from worker.engine.application import Holdfast
from worker.gateway import auth
from worker.gateway.accepting import GroupCommit
from worker.gateway.deep import Doctor
from worker.gateway.documents import Documents
from worker.gateway.probe import Probe
from worker.gateway.watching import Watch
from worker.store import aio


class Gateway:
    """The shared parts of one process's gateway."""

    def __init__(self, celery: Holdfast) -> None:
        self.celery = celery
        self.group = GroupCommit()
        self.watch = Watch(celery.backend.mget)
        self.documents = Documents(celery.backend.mget)
        self.probe = Probe()
        self.doctor = Doctor(celery)
        #: Batches take seconds: in threads of their own, so that those who look at jobs need not wait for them.
        self.batches = ThreadPoolExecutor(2, thread_name_prefix="holdfast-batch")
        #: The idempotency keys of requests that are not answered yet, with their callers.
        self.in_flight: set[tuple[str, str]] = set()

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """Run what works beside the requests; what waits to be accepted is accepted before it ends."""
        auth.forget()
        self.group.start()
        self.watch.start()
        try:
            yield
        finally:
            await self.group.stop()
            self.batches.shutdown(wait=False)
            await self.watch.stop()
            await aio.close()


def gateway_of(request: Request) -> Gateway:
    """Return the gateway that a request came to."""
    found: Gateway = request.app.state.gateway
    return found


