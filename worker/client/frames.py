"""Server-sent events, read from the bytes of a stream (WHATWG HTML, 9.2)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx

from worker.client.asking import Ask, Outcome, Tries, follow
from worker.client.forms import Event

#: Seconds after which a stream that ended is taken up again, until it says otherwise.
_AGAIN_S = 0.5


class Following:
    """How one job is followed: over as many streams as it takes, each behind the last event of the one before."""

    def __init__(self, job_id: str, last_id: str | None, patience_s: float) -> None:
        self._job_id, self._patience_s = job_id, patience_s
        self._frames = Frames(last_id)
        self._tries: Tries | None = None
        #: Whether nothing more will come.
        self.over = False

    def ask(self) -> Ask:
        """Return the request for the next stream."""
        self._frames.begin()
        return follow(self._job_id, self._frames.last_id)

    def take(self, piece: bytes) -> Iterator[Event]:
        """Take the next bytes of a stream and return the events that they complete."""
        self._tries = None
        for event in self._frames.feed(piece):
            self.over = self.over or event.is_last
            yield event

    def pause(self, outcome: Outcome) -> float:
        """Return the seconds until the next stream, after one that ended or an answer that was none. Raises as `Tries`."""
        if isinstance(outcome, httpx.Response) and outcome.is_success:
            self.over = self.over or outcome.status_code == httpx.codes.NO_CONTENT
            return 0.0 if self.over else self._frames.again_s
        if self._tries is None:
            self._tries = Tries(self.ask(), self._patience_s)
        return self._tries.pause(outcome)


class Frames:
    """The events of one stream, and behind which of them the next one begins.

    Only line feeds end its lines: a separator of Unicode may stand inside an error's text.
    """

    def __init__(self, last_id: str | None = None) -> None:
        #: The id of the last event that had one.
        self.last_id = last_id
        self.again_s = _AGAIN_S
        self._rest = b""
        self._fields: dict[str, str] = {}

    def begin(self) -> None:
        """Begin with another stream; what was incomplete comes again."""
        self._rest, self._fields = b"", {}

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Take the next bytes and return the events that they complete."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if text := line.removesuffix(b"\r").decode():
                name, _, value = text.partition(":")
                self._take(name, value.removeprefix(" "))
            elif (event := self._complete()) is not None:
                yield event

    def _take(self, name: str, value: str) -> None:
        if name == "retry" and value.isdecimal():
            self.again_s = int(value) / 1000
        elif name == "data" and "data" in self._fields:
            self._fields["data"] += f"\n{value}"
        else:
            self._fields[name] = value

    def _complete(self) -> Event | None:
        found, self._fields = self._fields, {}
        if "data" not in found:
            return None
        event = Event(found.get("event", "message"), json.loads(found["data"]), found.get("id"))
        self.last_id = event.id or self.last_id
        return event
