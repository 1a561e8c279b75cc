"""Dead letters: entries set aside with the reason, to be looked at and put back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from worker.errors import DeadLetterNotFound
from worker.store import keys, script
from worker.streams.entry import Entry, Value, checked_id
from worker.streams.group import Group
from worker.streams.stream import Stream

_dead = script("stream_dead")
_requeue = script("stream_requeue")

#: Before the names of the entry's own fields.
_OWN = "="
#: Characters of a reason that are kept.
_LONGEST = 2000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry that was set aside: under which id, what it was, why, and after how many deliveries."""

    id: str
    origin: str
    reason: str
    code: str
    #: Which part of the entry was wrong, as far as that is known.
    field: str
    deliveries: int
    at: datetime
    fields: dict[str, bytes]

    @property
    def told(self) -> dict[str, str]:
        """The entry's fields as text; bytes that are none are written out."""
        return {name: value.decode(errors="backslashreplace") for name, value in self.fields.items()}


class DeadLetters:
    """The dead letters of a stream, in a stream of their own beside it.

        dead = DeadLetters(stream)
        dead.put(group, entry, "no order has this number", code="unknown_order", field="order")
        dead.requeue(dead.list()[0].id)

    Nothing drops them but `requeue` and `drop`.

    **Guarantee:** an entry is in its group's hands or here, at each moment and once: acknowledging and setting aside are one
    step of the server, as is putting back. Both streams must be on one server.
    """

    def __init__(self, stream: Stream, key: str | None = None) -> None:
        self.stream = stream
        self.letters = Stream(key or keys.dead(stream.key), stream.role)

    def put(self, group: Group, entry: Entry, reason: str, *, code: str = "", field: str = "") -> str | None:
        """Set a pending entry aside and return the dead letter's id; None when it was not pending any more.

        Raises `StoreUnavailable`.
        """
        told: list[Value] = ["origin", entry.id, "reason", _bytes(reason[:_LONGEST]), "code", code, "field", _bytes(field),
                             "deliveries", entry.deliveries]  # fmt: skip
        for name, value in entry.fields.items():
            told += [(_OWN + name).encode(errors="surrogateescape"), value]
        command = _dead.command([self.stream.key, self.letters.key], [group.name, entry.id, *told])
        (found,) = self.stream.role().ask([command])
        return None if found is None else str(found.decode())

    def list(self, *, limit: int = 100) -> list[DeadLetter]:
        """Return dead letters, the newest first. Raises `StoreUnavailable`."""
        return [_letter(entry) for entry in self.letters.range(limit=limit, newest=True)]

    def __len__(self) -> int:
        """Return how many there are. Raises `StoreUnavailable`."""
        return len(self.letters)

    def requeue(self, letter_id: str) -> str:
        """Put an entry back into its stream and return its new id. Raises `DeadLetterNotFound`, `StoreUnavailable`."""
        command = _requeue.command([self.letters.key, self.stream.key], [checked_id(letter_id), _OWN])
        (found,) = self.stream.role().ask([command])
        if found is None:
            raise DeadLetterNotFound(f"no dead letter {letter_id!r} in {self.letters.key}")
        return str(found.decode())

    def drop(self, letter_id: str) -> None:
        """Delete a dead letter. Raises `DeadLetterNotFound`, `StoreUnavailable`."""
        if not self.letters.delete([letter_id]):
            raise DeadLetterNotFound(f"no dead letter {letter_id!r} in {self.letters.key}")


def _bytes(text: str) -> bytes:
    """Return a text that may quote what no UTF-8 can say."""
    return text.encode(errors="backslashreplace")


def _letter(entry: Entry) -> DeadLetter:
    def told(name: str) -> str:
        return entry.fields.get(name, b"").decode(errors="replace")

    own = {name.removeprefix(_OWN): value for name, value in entry.fields.items() if name.startswith(_OWN)}
    return DeadLetter(
        entry.id, told("origin"), told("reason"), told("code"), told("field"), int(told("deliveries") or 0), entry.at, own
    )
