"""Reading a time range once more, in a group beside the live one."""

from __future__ import annotations

from datetime import datetime

from worker.errors import InvalidStream
from worker.store import script
from worker.streams.entry import Entry, entry_of, first_id_at
from worker.streams.group import Group
from worker.streams.stream import Stream

_replay = script("stream_replay")


class Replay(Group):
    """A side group that reads the entries appended between two moments, and none beside them.

        again = Replay(stream, "billing-again", consumer="me", since=yesterday, until=this_morning)
        while entries := again.read():
            ...
            again.ack([entry.id for entry in entries])
        again.destroy()

    A group of this name that is there goes on where it is. `until` is not included; without it, it is the moment of the call.

    **Guarantee:** the live groups neither move nor lose a pending entry; as long as the side group is there, `trim` keeps what
    it has not read.
    """

    def __init__(self, stream: Stream, name: str, *, consumer: str, since: datetime, until: datetime | None = None) -> None:
        if until is not None and until <= since:
            raise InvalidStream(f"until: {until.isoformat()} is not after {since.isoformat()}")
        super().__init__(stream, name, consumer=consumer, start=_before(first_id_at(since)))
        self._last = f"({first_id_at(until)}" if until else self._newest()

    def _newest(self) -> str:
        found = self.stream.range(limit=1, newest=True)
        return found[0].id if found else "0-0"

    def read(self, *, limit: int = 100, wait_s: float = 0.0) -> list[Entry]:
        """Return the next entries of the range; nothing when it is over. It does not wait. Raises as `Group.read`."""
        _ = self.life
        (found,) = self._ask(_replay.command([self.stream.key], [self.name, self.consumer, self._last, limit]))
        return [entry_of(raw, 1) for raw in found]


def _before(entry_id: str) -> str:
    """Return the greatest id below one that ends in 0."""
    milliseconds = int(entry_id.partition("-")[0])
    return f"{milliseconds - 1}-18446744073709551615" if milliseconds else "0-0"
