"""An entry of a stream, its id as a moment, and structured values as its fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from worker.errors import InvalidEntry

T = TypeVar("T")

#: What a field's value may be; all of it is bytes on the server.
Value = str | bytes | int | float

_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
#: The field that holds a structured value.
_DATA = "data"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: its id, its fields as they came, and how often it was delivered (0 where nobody asked)."""

    id: str
    fields: dict[str, bytes]
    deliveries: int = 0

    @property
    def at(self) -> datetime:
        """The moment at which it was appended, by the server's clock, unless its writer chose the id."""
        return datetime.fromtimestamp(milliseconds(self.id) / 1000, UTC)

    def text(self, field: str) -> str | None:
        """Return a field as text; None when it is missing. Raises `InvalidEntry` when it is not UTF-8."""
        value = self.fields.get(field)
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError as exc:
            raise InvalidEntry(f"entry {self.id}: field {field!r} is not UTF-8", field=field) from exc


def flat(fields: Mapping[str, Value]) -> list[Value]:
    """Return fields and values one behind the other, as Redis takes them. Raises `InvalidEntry`."""
    if not fields:
        raise InvalidEntry("an entry needs at least one field")
    for name, value in fields.items():
        if not isinstance(value, str | bytes | int | float) or isinstance(value, bool):
            raise InvalidEntry(f"field {name!r}: {value!r} is not a text, bytes or a number; see `pack`", field=name)
    return [part for pair in fields.items() for part in pair]


def entry_of(raw: Sequence[Any], deliveries: int = 0) -> Entry:
    """Return an entry as the server tells it: an id and flat fields. Of a field that is given twice the last value counts."""
    found_id, parts = raw[0], raw[1] or []
    names = [name.decode(errors="surrogateescape") for name in parts[::2]]
    return Entry(found_id.decode(), dict(zip(names, parts[1::2], strict=True)), deliveries)


def pack(value: Any) -> dict[str, Value]:
    """Return a structured value as the fields of an entry: JSON by msgspec.

        stream.append(pack(Reading(sensor="a", celsius=21.5)))

    Raises `InvalidEntry` for what JSON has no word for.

    **Guarantee:** `unpack(entry, type(value))` gives an equal value back, or raises.
    """
    try:
        return {_DATA: msgspec.json.encode(value)}
    except (TypeError, ValueError, msgspec.MsgspecError) as exc:
        raise InvalidEntry(f"{type(value).__name__} cannot be written as JSON: {exc}") from exc


def unpack(entry: Entry, of: type[T]) -> T:
    """Return the structured value of an entry, checked against its type.

        reading = unpack(entry, Reading)

    Raises `InvalidEntry` that names the entry and what is wrong.

    **Guarantee:** what comes back is of the type, also where the entry was written by a stranger.
    """
    try:
        return msgspec.json.decode(entry.fields[_DATA], type=of)
    except KeyError as exc:
        raise InvalidEntry(f"entry {entry.id} has no field {_DATA!r}", field=_DATA) from exc
    except msgspec.MsgspecError as exc:
        raise InvalidEntry(f"entry {entry.id} is no {of.__name__}: {exc}", field=_DATA) from exc


def checked_id(text: str) -> str:
    """Return an entry's id. Raises `InvalidEntry` for what is none."""
    if not _ID.fullmatch(text):
        raise InvalidEntry(f"{text!r} is not the id of an entry; one looks like 1767225600000-0")
    return text


def milliseconds(entry_id: str) -> int:
    """Return the milliseconds since 1970 that an id begins with."""
    return int(entry_id.partition("-")[0])


def first_id_at(moment: datetime) -> str:
    """Return the least id that an entry of this moment can have."""
    return f"{max(0, int(moment.timestamp() * 1000))}-0"
