"""`holdfast beat`: Celery's beat on the schedules in Postgres."""

from __future__ import annotations

import typer

from worker.cli import options
from worker.cli.services import check_servers, services


def beat(context: typer.Context, loglevel: options.LogLevel = None) -> None:
    """Fire schedules; any number may run, a tick fires once. Options that Holdfast does not know go on to `celery beat`."""
    with services():
        check_servers()
        from worker.cli.stock import celery
        from worker.settings import settings

        raise typer.Exit(celery(["beat", "-l", loglevel or settings().log_level, *context.args]))
