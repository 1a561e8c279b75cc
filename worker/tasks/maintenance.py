"""The jobs that beat sends to keep the ledger in order; when they run is `MAINTENANCE` in `engine/beat.py`."""

from __future__ import annotations

from typing import Any

from worker.app import app
from worker.db import statement
from worker.ledger import audit, history, nodes, notes, usage
from worker.settings import settings
from worker.telemetry import log

logger = log(__name__)

#: A relay rescues within `node_dead_s` and a round; what it has not seen after three of those it does not see at all.
_MISSED = 3.0


@app.task(name="maintenance.upkeep")  # type: ignore[untyped-decorator]
def upkeep() -> dict[str, list[str]]:
    """Make the history's partitions of the days ahead, drop the old ones, and forget what has had its time."""
    with statement() as conn:
        changed = history.keep_up(conn)
        nodes.prune(conn)
        usage.prune(conn)
        notes.prune(conn)
    return changed


@app.task(name="maintenance.audit")  # type: ignore[untyped-decorator]
def look() -> dict[str, Any]:
    """Report what rescue and upkeep should have seen to and have not; log a warning for each finding, change nothing."""
    with statement() as conn:
        report = audit.look(conn, after_s=settings().node_dead_s * _MISSED)
    for finding in report["findings"]:
        logger.warning("the audit found something", finding=finding)
    return report
