"""`holdfast workers`: the fleet by its signs of life."""

from __future__ import annotations

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
        from worker.engine import fleet

        rows = fleet.listed()
    if as_json:
        emit(rows)
    else:
        table([{**row, "queues": ",".join(row["queues"]), "silent_s": f"{row['silent_s']:.1f}"} for row in rows], _COLUMNS)
