"""The forwarder: carries the events from Postgres to the stream on which services follow them."""

from __future__ import annotations

import time

from worker import faults
from worker.db import statement
from worker.errors import InvalidPosition
from worker.ledger import events
from worker.ledger.events import Event, Position
from worker.settings import settings
from worker.store import coordination, keys
from worker.streams import Stream
from worker.streams.entry import Value
from worker.telemetry import OUTAGES, RELAYED, log

logger = log(__name__)

#: The reader whose position is that of the stream.
READER = "stream"
#: Events carried in one transaction; a crash in between repeats at most so many.
_BATCH = 500
#: Seconds between two looks for what can be dropped from the stream.
_TRIM_S = 2.0
#: Times the stream may grow beyond what is kept while a group has yet to read it: all of it is in Postgres.
_HARD = 10


class Forwarder:
    """One forwarder. Any number may run: one at a time carries, and the others find nothing to do."""

    def __init__(self) -> None:
        self.stream = Stream(keys.events())
        self._trim_at = 0.0

    def round(self) -> bool:
        """Carry what is new and tell whether there may be more. Raises `StoreUnavailable`, `LedgerUnavailable`.

        The position is written after the stream has the events: what a crash leaves between the two is carried twice.
        """
        self._trim()
        with statement() as conn, conn.transaction():
            position = events.try_reader(conn, READER)
            if position is None:
                return False
            found = events.events_since(conn, position, limit=_BATCH)
            if not found:
                self._check(position)
                return False
            self.stream.append_many([fields_of(event) for event in sorted((event for event, _ in found), key=lambda it: it.id)])
            coordination().ask([("PUBLISH", keys.news(), found[-1][0].id)])
            faults.point(faults.BEFORE_REMEMBER)
            # Not waited for on disk: forgotten in a crash, the same events are carried once more.
            conn.execute("SET LOCAL synchronous_commit = off")
            events.remember(conn, READER, found[-1][1])
        RELAYED.labels("event carried").inc(len(found))
        return len(found) == _BATCH

    def _check(self, position: Position) -> None:
        """Begin anew in a database that was restored from a dump, where transactions are counted from the beginning again."""
        try:
            with statement() as conn:
                events.check_position(conn, position)
        except InvalidPosition as exc:
            OUTAGES.labels("events", "begun anew").inc()
            logger.warning("the event stream begins anew", reason=str(exc))
            with statement() as conn:
                events.remember(conn, READER, events.end(conn))

    def _trim(self) -> None:
        if time.monotonic() < self._trim_at:
            return
        self._trim_at = time.monotonic() + _TRIM_S
        keep = settings().events_keep_size
        self.stream.trim(keep=keep, unread_too=True)
        if cut := self.stream.cut(keep * _HARD):
            OUTAGES.labels("events", "cut unread").inc(cut)


def fields_of(event: Event) -> dict[str, Value]:
    """Return an event as the fields of an entry; what it does not have is left out."""
    told: dict[str, Value | None] = {
        "id": event.id, "job_id": event.job_id, "task": event.task, "queue": event.queue, "caller": event.caller,
        "key": event.key, "state": event.state, "attempt": event.attempt, "at": event.at.isoformat(), "detail": event.detail,
    }  # fmt: skip
    return {name: value for name, value in told.items() if value is not None}
