"""`holdfast top`: the leaderboards."""

from __future__ import annotations

from typing import Annotated

import typer

from worker.cli import options
from worker.cli.output import emit, table
from worker.cli.services import services


def top(
    board: Annotated[str, typer.Argument(metavar="BOARD", help="callers, slow, failing or spenders.")],
    window: Annotated[str, typer.Option("--window", metavar="WINDOW", help="The hour, day or week that is now, in UTC.")] = "day",
    count: Annotated[int, typer.Option("--count", min=1, max=1000, help="Members to list.")] = 10,
    as_json: options.AsJson = False,
) -> None:
    """List the busiest callers, the slowest or most failing tasks, or the biggest spenders, as beat counted minutes ago."""
    with services():
        from worker.db import statement
        from worker.ledger import boards

        with statement() as conn:
            places = boards.top(conn, board, window, count)  # type: ignore[arg-type]
        told = boards.BOARDS[board][0]
    rows = [place._asdict() for place in places]
    emit(rows) if as_json else table(rows, {"rank": "rank", "member": "who", "value": told}, cut=("member",))
