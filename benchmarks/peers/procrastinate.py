"""Procrastinate on Postgres."""

from __future__ import annotations

import os
import sys

from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

from benchmarks import meter

TITLE = "Procrastinate"
PACKAGE = "procrastinate"
SETUP = "2 processes of concurrency 10"
WORKER = ("-m", "procrastinate", "-a", "benchmarks.peers.procrastinate.app", "--log-level", "warning", "worker",
          "-c", "10")  # fmt: skip
WORKERS = 2

_connector = PsycopgConnector if "worker" in sys.argv else SyncPsycopgConnector
app = App(connector=_connector(conninfo=os.environ["DATABASE_URL"]))


@app.task
async def noop() -> None:
    """Count the call."""
    meter.tick()


def prepare() -> None:
    """Create the tables."""
    with app.open():
        app.schema_manager.apply_schema()


def delay(n: int) -> None:
    """Enqueue n no-ops."""
    with app.open():
        for _ in range(n):
            noop.defer()


def many(n: int) -> None:
    """Enqueue n no-ops, a thousand to a statement."""
    with app.open():
        for start in range(0, n, 1000):
            noop.batch_defer(*[{} for _ in range(start, min(n, start + 1000))])
