"""The events of a job, in order, each with an id after which one can go on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple


class Event(NamedTuple):
    """A change of a job. Progress has no id: it is told while it is news, and not again."""

    id: int | None
    name: str
    data: dict[str, Any]


async def events_after(row: Mapping[str, Any], last_id: int) -> list[Event]:
    """Return what has happened to a job since the event `last_id`; 0 for all of it. `row` is the job as `Documents.of` tells it.

    It is derived from the row and its attempts, whose moments make the ids.
    """
    events = []
    last = 0
    for moment, state, more in _changes(row):
        last = max(last + 1, round(moment.timestamp() * 1_000_000))
        events.append(Event(last, "state", {"id": row["id"], "state": state, "at": moment, **more}))
    return [event for event in events if event.id is not None and event.id > last_id]


def _changes(row: Mapping[str, Any]) -> list[tuple[datetime, str, dict[str, Any]]]:
    changes: list[tuple[datetime, str, dict[str, Any]]] = [(row["created_at"], "accepted", {})]
    for one in row["attempts"]:
        if one["started_at"] is not None:
            changes.append((one["started_at"], "running", {"attempt": one["attempt"]}))
        changes.append((one["ended_at"], one["outcome"], {"attempt": one["attempt"], "error": one["error"]}))
    if row.get("claimed_at") is not None:
        changes.append((row["claimed_at"], "running", {"attempt": row["attempt"]}))
    if row.get("finished_at") is not None:
        changes.append((row["finished_at"], row["state"], {"attempt": row["attempt"], "error": row["error"]}))
    return sorted(changes, key=lambda change: change[0])
