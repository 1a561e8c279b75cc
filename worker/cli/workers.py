"""`holdfast workers`: the fleet by its signs of life."""

from __future__ import annotations

from typing import Any

import typer

from worker.cli import options
from worker.cli.output import emit, table
from worker.cli.services import services

app = typer.Typer(no_args_is_help=True, help="Look at the workers.")

_COLUMNS = {"name": "name", "status": "status", "online": "on-line", "running": "running", "silent_s": "silent (s)",
            "queues": "queues", "host": "host", "pid": "pid", "started_at": "started (UTC)"}  # fmt: skip


@app.command("ls")
def ls(as_json: options.AsJson = False) -> None:
    """List the workers, those that left within a day included, with the jobs each runs."""
    with services():
        from worker.db import statement
        from worker.ledger import manage
        from worker.settings import settings

        with statement() as conn:
            rows = manage.list_workers(conn)
        online = _online()
        rows = [
            {**row, "status": _status(row, settings().node_dead_s), "online": None if online is None else row["id"] in online}
            for row in rows
        ]
    if as_json:
        emit(rows)
    else:
        table([{**row, "queues": ",".join(row["queues"]), "silent_s": f"{row['silent_s']:.1f}"} for row in rows], _COLUMNS)


def _online() -> set[str] | None:
    """Return the ids of the workers that are on-line by what they tell Redis; None while it is away."""
    from worker.engine.node import FLEET
    from worker.errors import StoreUnavailable

    try:
        return {device for devices in FLEET.online().values() for device in devices}
    except StoreUnavailable:
        return None


def _status(row: dict[str, Any], dead_s: float) -> str:
    if row["left_at"] is not None:
        return "left"
    return "silent" if row["silent_s"] > dead_s else "up"
