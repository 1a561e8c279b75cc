"""`holdfast callers`: who may use the HTTP gateway."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from worker.cli import options, parse
from worker.cli.output import emit, note, table
from worker.cli.services import services

app = typer.Typer(no_args_is_help=True, help="Say who may use the HTTP gateway.")

_COLUMNS = {"name": "name", "key": "key", "scopes": "scopes", "tasks": "tasks", "queues": "queues", "rate": "rate",
            "status": "status", "created_at": "created (UTC)", "rotated_at": "rotated (UTC)"}  # fmt: skip

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The caller.")]


@app.command("add")
def add(
    name: _Name,
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", metavar="SCOPE", help="enqueue, read or admin; may be repeated; by default enqueue and read.",
                     show_default=False),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="PATTERN", help="A task it may use, as reports.*; may be repeated; by default all.",
                     show_default=False),
    ] = None,
    queue: Annotated[
        list[str] | None,
        typer.Option("--queue", metavar="NAME", help="A queue it may use; may be repeated; by default all.", show_default=False),
    ] = None,
    rate: Annotated[
        str | None, typer.Option("--rate", metavar="RATE", help='Most requests, as "100/second burst 20"; by default no limit.')
    ] = None,
) -> None:  # fmt: skip
    """Add a caller and print its key on stdout, once: it is kept nowhere."""
    with services():
        from worker.db import statement
        from worker.ledger import callers

        with statement() as conn:
            key = callers.add(conn, name, scopes=scope or ["enqueue", "read"], tasks=task, queues=queue, rate=rate)
    note(f"the key of {name}; it is shown this once")
    print(key)


@app.command("ls")
def ls(as_json: options.AsJson = False) -> None:
    """List the callers; of a key only its beginning is known."""
    with services():
        from worker.db import statement
        from worker.ledger import callers

        with statement() as conn:
            rows = callers.list_callers(conn)
    if as_json:
        emit(rows)
        return
    shown = [
        {**row, "key": f"{row['prefix']}…", "status": "revoked" if row["revoked_at"] else "", "scopes": " ".join(row["scopes"]),
         "tasks": " ".join(row["tasks"] or ["all"]), "queues": " ".join(row["queues"] or ["all"])}
        for row in rows
    ]  # fmt: skip
    table(shown, _COLUMNS, cut=("tasks", "queues"))


@app.command("rotate")
def rotate(
    name: _Name,
    overlap: Annotated[
        timedelta, typer.Option(parser=parse.duration, metavar="DURATION", help="How long the key before still counts.")
    ] = "1d",  # type: ignore[assignment]
) -> None:
    """Give a caller a new key and print it, once; the one before counts for a while, so that nobody is locked out."""
    with services():
        from worker.db import statement
        from worker.ledger import callers

        with statement() as conn:
            key = callers.rotate(conn, name, overlap_s=overlap.total_seconds())
    note(f"the new key of {name}; it is shown this once")
    print(key)


@app.command("revoke")
def revoke(name: _Name) -> None:
    """Let a caller in no more, within a second; the jobs it has handed in go on."""
    with services():
        from worker.db import statement
        from worker.ledger import callers

        with statement() as conn:
            callers.revoke(conn, name)
    print(f"revoked: {name}")
