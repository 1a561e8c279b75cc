"""The job that builds the leaderboards of the ledger, sent by beat."""

from __future__ import annotations

from collections.abc import Sequence

from worker.app import app
from worker.db import statement
from worker.ledger import boards
from worker.live.leaderboards import Window


@app.task(name="boards.refresh")  # type: ignore[untyped-decorator]
def refresh(windows: Sequence[Window] = boards.WINDOWS) -> dict[str, int]:
    """Build the leaderboards of these windows anew; return how many members each has."""
    with statement() as conn:
        return boards.refresh(conn, windows)
