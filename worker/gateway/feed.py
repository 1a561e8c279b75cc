"""The events of a job, in order, each with an id after which one can go on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from worker.db import repeatable
from worker.ledger import events

#: Ids from which on they are moments, in microseconds since 1970; those of events that were written are counted from one.
_MOMENTS = 10**14
#: States that no error goes with.
_UNDER_WAY = ("accepted", "running")


class Event(NamedTuple):
    """A change of a job. Progress has no id: it is told while it is news, and not again."""

    id: int | None
    name: str
    data: dict[str, Any]


async def events_after(row: Mapping[str, Any], last_id: int) -> list[Event]:
    """Return what has happened to a job since the event `last_id`; 0 for all of it. `row` is the job as `Documents.of` tells it.

    It is what was written with each change, of a job of which events are written; of any other it is derived from the row and its
    attempts. A job whose events begin to be written while it is followed is told of from its first written event on.
    Raises `LedgerUnavailable`.
    """
    seen = 0 if last_id >= _MOMENTS else last_id
    written = await asyncio.to_thread(
        repeatable, lambda conn: events.events_after(conn, job_id=row["id"], after_id=seen)
    )
    if written or seen:
        return [_told(event, is_first=not seen and place == 0) for place, event in enumerate(written)]
    return [event for event in _derived(row) if event.id is not None and event.id > last_id]


def _told(event: events.Event, *, is_first: bool) -> Event:
    state = "accepted" if is_first and not event.attempt else event.state
    more: dict[str, Any] = {} if state == "accepted" else {"attempt": event.attempt}
    return _state(event.id, event.job_id, state, event.at, more if state in _UNDER_WAY else {**more, "error": event.detail})


def _state(event_id: int, job_id: str, state: str, at: datetime, more: dict[str, Any]) -> Event:
    return Event(event_id, "state", {"id": job_id, "state": state, "at": at.astimezone(UTC), **more})


def _derived(row: Mapping[str, Any]) -> list[Event]:
    found = []
    last = 0
    for moment, state, more in _changes(row):
        last = max(last + 1, round(moment.timestamp() * 1_000_000))
        found.append(_state(last, row["id"], state, moment, more))
    return found


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
