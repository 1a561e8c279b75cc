"""A stream: an append-only list of entries in Redis, kept until every group is done with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from worker.errors import InvalidStream
from worker.store import Role, coordination, keys, script
from worker.streams.entry import Entry, Value, checked_id, entry_of, flat

_once = script("stream_once")
_trim = script("stream_trim")

#: Entries appended in one round trip.
_BATCH = 500
#: Entries that one run of the script drops: it holds up the whole server meanwhile, for a few milliseconds.
_DROP = 1000
#: Seconds for which a token of `once` is remembered.
_ONCE_S = 86_400.0
#: Characters of a name: it is part of keys.
_LONGEST = 200


class Stream:
    """A stream by its full key, or by a name of one's own.

        orders = Stream.named("orders")
        orders.append({"order": 17, "paid": "yes"})

    Its key has no time to live: what bounds it is `trim`, which whoever reads it calls, and which drops what every group is
    done with.

    **Guarantee:** an entry that was appended stays until `trim` or `cut` drops it, also through a restart of Redis as far as
    its disk goes; a flush of Redis drops it.
    """

    def __init__(self, key: str, role: Callable[[], Role] = coordination) -> None:
        self.key, self.role = key, role

    @classmethod
    def named(cls, name: str) -> Stream:
        """Return the stream of a program's own under `holdfast:stream:`. Raises `InvalidStream`."""
        return cls(keys.stream(checked_name(name)))

    @classmethod
    def called(cls, name: str) -> Stream:
        """Return the stream that people call `intake` or `events`, or another by its whole key."""
        return cls({"intake": keys.intake(), "events": keys.events()}.get(name, name))

    # ---- writing

    def append(self, fields: Mapping[str, Value], *, once: str | None = None, once_s: float = _ONCE_S) -> str:
        """Append an entry and return its id; a second one under the same token `once` within `once_s` is not appended.

            stream.append({"order": 17}, once="order 17 was paid")

        Raises `InvalidEntry`, `StoreUnavailable`. After a `StoreUnavailable` the entry may be there or not: repeat it with the
        same `once`.

        **Guarantee:** with `once`, however often it is repeated, there is one entry, unless Redis forgot the first.
        """
        values = flat(fields)
        if once is None:
            ((found),) = self.role().ask([("XADD", self.key, "*", *values)])
            return str(found.decode())
        mark = keys.stream_once(self.key, checked_name(once))
        ((found, _),) = self.role().ask([_once.command([self.key, mark], [max(1, round(once_s * 1000)), *values])])
        return str(found.decode())

    def append_many(self, entries: Sequence[Mapping[str, Value]]) -> list[str]:
        """Append entries in order and return their ids; raises as `append`, and then the first of them may be there.

            stream.append_many([{"n": n} for n in range(1000)])

        **Guarantee:** they stand in the stream in this order; others' entries may stand between them.
        """
        commands: list[tuple[Any, ...]] = [("XADD", self.key, "*", *flat(fields)) for fields in entries]
        pieces = (commands[at : at + _BATCH] for at in range(0, len(commands), _BATCH))
        return [found.decode() for piece in pieces for found in self.role().ask(piece)]

    def delete(self, ids: Sequence[str]) -> int:
        """Delete entries by id and return how many there were. Raises `StoreUnavailable`."""
        (count,) = self.role().ask([("XDEL", self.key, *map(checked_id, ids))]) if ids else (0,)
        return int(count)

    # ---- looking

    def __len__(self) -> int:
        """Return how many entries it holds. Raises `StoreUnavailable`."""
        (count,) = self.role().ask([("XLEN", self.key)])
        return int(count)

    def range(self, first: str = "-", last: str = "+", *, limit: int = 100, newest: bool = False) -> list[Entry]:
        """Return entries between two ids, both included, the oldest first, or with `newest` the newest first.

            stream.range(first_id_at(now() - timedelta(minutes=5)))

        Raises `StoreUnavailable`.

        **Guarantee:** it only reads: no group moves.
        """
        command = ("XREVRANGE", self.key, last, first) if newest else ("XRANGE", self.key, first, last)
        (found,) = self.role().ask([(*command, "COUNT", limit)])
        return [entry_of(raw) for raw in found]

    def scan(self, first: str = "-", last: str = "+") -> Iterator[Entry]:
        """Yield all entries between two ids, a page at a time, as `range`."""
        while page := self.range(first, last, limit=_BATCH):
            yield from page
            first = f"({page[-1].id}"

    # ---- dropping

    def trim(self, *, keep: int | None = None, keep_s: float | None = None, unread_too: bool = False) -> int:
        """Drop entries that every group is done with, beyond a length or older than an age, and return how many.

            stream.trim(keep=10_000)

        Without a bound all of those go. A stream without any group is left alone unless `unread_too`. Raises
        `StoreUnavailable`.

        **Guarantee:** no entry goes that some group has not read or not acknowledged; the lowest such id of all groups is found
        and the entries before it dropped in one step of the server.
        """
        age_ms = -1 if keep_s is None else round(keep_s * 1000)
        dropped, count = 0, _DROP
        while count >= _DROP:
            arguments = [-1 if keep is None else keep, age_ms, _DROP, int(unread_too)]
            (count,) = self.role().ask([_trim.command([self.key], arguments)])
            dropped += int(count)
        return dropped

    def cut(self, keep: int) -> int:
        """Drop all but about the newest `keep` entries, read or not, and return how many.

            mirror.cut(1_000_000)

        It is for streams that are a copy of what is kept elsewhere. Raises `StoreUnavailable`.

        **Guarantee:** none but the bound on memory: an entry that no group has read may go.
        """
        (count,) = self.role().ask([("XTRIM", self.key, "MAXLEN", "~", keep)])
        return int(count)


def checked_name(name: str) -> str:
    """Return a name of a stream, group, consumer or token. Raises `InvalidStream` for one that cannot be used."""
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST or not name.isprintable():
        raise InvalidStream(f"{name!r} is not a printable text of 1 to {_LONGEST} characters")
    return name
