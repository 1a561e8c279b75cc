"""The workers as people see them: by their signs of life in Postgres, and by what they tell Redis."""

from __future__ import annotations

from typing import Any

from worker.db import statement
from worker.engine.node import FLEET
from worker.errors import StoreUnavailable
from worker.ledger import manage
from worker.settings import settings


def listed() -> list[dict[str, Any]]:
    """Return the workers, those that left within a day included, each with its `status`: up, silent or left.

    `online` tells whether it is by what it tells Redis, None while that is away. Raises `LedgerUnavailable`.
    """
    with statement() as conn:
        rows = manage.list_workers(conn)
    online = _online()
    return [
        {**row, "status": _status(row, settings().node_dead_s), "online": None if online is None else row["id"] in online}
        for row in rows
    ]


def _online() -> set[str] | None:
    try:
        return {device for devices in FLEET.online().values() for device in devices}
    except StoreUnavailable:
        return None


def _status(row: dict[str, Any], dead_s: float) -> str:
    if row["left_at"] is not None:
        return "left"
    return "silent" if row["silent_s"] > dead_s else "up"
