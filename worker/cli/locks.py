"""`holdfast locks`: see who holds which lock and who waits for it, and take one away."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import options
from worker.cli.exits import ExitCode
from worker.cli.output import emit, note, record, table
from worker.cli.services import services

if TYPE_CHECKING:
    from worker.locks import Holder

app = typer.Typer(no_args_is_help=True, help="See who holds which lock, and take one away.")

_COLUMNS = {"name": "lock", "kind": "kind", "holder": "holder", "age_s": "age (s)", "fence": "fence", "left_s": "left (s)",
            "waiting": "waiting"}  # fmt: skip
_TRANSACTIONS = {"pid": "pid", "holder": "connection", "shared": "shared", "granted": "granted", "age_s": "age (s)"}

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The lock.")]


@app.command("ls")
def ls(
    jobs: Annotated[bool, typer.Option("--jobs", help="Also the lock that each running job has of its own.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """List the locks and semaphores that are held in Redis; those of Postgres are known to it by their keys alone."""
    with services():
        from worker.locks import list_locks

        found = list_locks(jobs=jobs)
    if as_json:
        emit([asdict(holder) for holder in found])
    else:
        table([_row(holder) for holder in found], _COLUMNS, cut=("holder",))


@app.command("show")
def show(name: _Name, as_json: options.AsJson = False) -> None:
    """Show who holds a name and who waits for it, in Redis and in Postgres; exits with 1 when nobody does."""
    with services():
        from worker.locks import picture_of

        found = picture_of(name)
    if as_json:
        emit(asdict(found))
    elif found.holders or found.in_postgres:
        _show(found)
    else:
        note(f"nobody holds {name!r}")
    if not found.holders and not any(row["granted"] for row in found.in_postgres):
        raise typer.Exit(ExitCode.NO)


@app.command("break")
def break_(name: _Name) -> None:
    """Take a lock of Redis away from whoever holds it, and give it to the next who waits; exits with 1 when nobody held it.

    The holder is not stopped: it learns of the loss with its next renewal. One of Postgres ends with its transaction.
    """
    with services():
        from worker.locks import break_lock

        broken = break_lock(name)
    if not broken:
        note(f"nobody holds {name!r} in Redis")
        raise typer.Exit(ExitCode.NO)
    print(f"broken: {name}")


def _show(found: Any) -> None:
    for holder in found.holders:
        record(_row(holder).items())
    if found.waiting:
        record([("waiting", "\n".join(found.waiting) if len(found.waiting) > 1 else found.waiting[0])])
    if found.in_postgres:
        table([{**row, "age_s": _seconds(row["age_s"])} for row in found.in_postgres], _TRANSACTIONS)


def _row(holder: Holder) -> dict[str, Any]:
    return {**asdict(holder), "age_s": _seconds(holder.age_s), "left_s": _seconds(holder.left_s)}


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"
