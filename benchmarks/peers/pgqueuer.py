"""PgQueuer on Postgres."""

from __future__ import annotations

import asyncio
import os

import psycopg
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import PsycopgDriver, SyncPsycopgDriver
from pgqueuer.models import Job
from pgqueuer.queries import SyncQueries

from benchmarks import meter

TITLE = "PgQueuer"
PACKAGE = "pgqueuer"
SETUP = "2 processes of batch size 50"
#: Not its own command, which does not start with the Typer that is pinned here.
WORKER = ("-c", "from benchmarks.peers import pgqueuer; pgqueuer.serve()")
WORKERS = 2


async def main() -> PgQueuer:
    """Return the worker."""
    conn = await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"], autocommit=True)
    worker = PgQueuer(PsycopgDriver(conn))

    @worker.entrypoint("noop")
    async def noop(job: Job) -> None:
        meter.tick()

    return worker


def serve() -> None:
    """Run a worker for ever."""

    async def run() -> None:
        await (await main()).run(batch_size=50)

    asyncio.run(run())


def prepare() -> None:
    """Create the tables."""

    async def install() -> None:
        async with await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
            await Queries(PsycopgDriver(conn)).install()

    asyncio.run(install())


def delay(n: int) -> None:
    """Enqueue n no-ops."""
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
        queries = SyncQueries(SyncPsycopgDriver(conn))
        for _ in range(n):
            queries.enqueue("noop", None)


def many(n: int) -> None:
    """Enqueue n no-ops, a thousand to a statement."""
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
        queries = SyncQueries(SyncPsycopgDriver(conn))
        for start in range(0, n, 1000):
            size = min(1000, n - start)
            queries.enqueue(["noop"] * size, [None] * size, [0] * size)
