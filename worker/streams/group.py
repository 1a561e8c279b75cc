"""A consumer group: entries shared out among consumers, each pending until it is acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from worker.errors import ConsumerBusy, StoreRefused, StreamGone
from worker.store import script
from worker.streams.entry import Entry, checked_id, entry_of
from worker.streams.stream import Stream, checked_name

_group = script("stream_group")
_leave = script("stream_leave")

#: Before the token in the name of the consumer that keeps it.
LIFE = "life-"
#: Entries looked at in one step of reclaiming.
_STEP = 100


@dataclass(frozen=True, slots=True)
class Pending:
    """An entry that was delivered and not acknowledged: to whom, how often, and the seconds since the last delivery."""

    id: str
    consumer: str
    idle_s: float
    deliveries: int


class Group:
    """A group of a stream, read by one consumer of it.

        group = Group(stream, "billing", consumer="billing-1")
        for entry in group.read(limit=100, wait_s=1.0):
            handle(entry)
            group.ack([entry.id])

    The group is made with the first read, from the beginning of the stream, or from `start` ("$": only what comes later).

    **Guarantee:** each entry is delivered to one consumer of the group, and again, to whoever reclaims it, until it is
    acknowledged: at least once. It is lost to the group when Redis is flushed, or `cut` drops it.
    """

    def __init__(self, stream: Stream, name: str, *, consumer: str, start: str = "0") -> None:
        self.stream, self.name, self.consumer, self.start = stream, checked_name(name), checked_name(consumer), start
        self._life = ""

    # ---- being there

    def ensure(self) -> str:
        """Make the group if it is missing and return its life: a random token that is gone with the group.

        Entry ids can repeat in another life of a stream, after a flush say; with the life before them they do not.
        """
        arguments = [self.name, self.start, token_hex(8), LIFE]
        ((life, _),) = self._ask(_group.command([self.stream.key], arguments))
        self._life = life.decode()
        return self._life

    @property
    def life(self) -> str:
        """The group's life as it was last seen; see `ensure`."""
        return self._life or self.ensure()

    # ---- reading

    def read(self, *, limit: int = 100, wait_s: float = 0.0) -> list[Entry]:
        """Return entries that the group has not read yet; waits for the first, `wait_s` at the most.

        Raises `StoreUnavailable`, also for a wait that is longer than the server is given to answer, and `StreamGone` when the
        group was lost with its stream: it is made anew by then, and the next read goes on.

        **Guarantee:** what is returned is pending with this consumer until `ack`.
        """
        _ = self.life
        wait = ("BLOCK", round(wait_s * 1000)) if wait_s > 0 else ()
        command = ("XREADGROUP", "GROUP", self.name, self.consumer, "COUNT", limit, *wait, "STREAMS", self.stream.key, ">")
        found = self._wait(command) if wait_s > 0 else self._ask(command)[0]
        if not found:
            return []
        pairs = next(iter(found.values())) if isinstance(found, dict) else found[0][1]
        return [entry_of(raw, 1) for raw in pairs]

    def ack(self, ids: Sequence[str]) -> int:
        """Acknowledge entries and return how many of them were pending. Raises `StoreUnavailable`.

            group.ack([entry.id for entry in done])

        **Guarantee:** repeated, or after another has acknowledged them, it does no harm.
        """
        if not ids:
            return 0
        (count,) = self._ask(("XACK", self.stream.key, self.name, *map(checked_id, ids)))
        return int(count)

    # ---- what others left behind

    def reclaim(self, *, idle_s: float, limit: int = 100) -> list[str]:
        """Take over entries that another consumer has held for so long by the server's clock, and return their ids.

        They are not delivered by this: see `deliver`. A consumer is dead if it neither acknowledges nor `keep`s. Entries that
        are no longer in the stream are acknowledged and left out. Raises `StoreUnavailable`.

        **Guarantee:** of two that reclaim at the same time one gets an entry.
        """
        _ = self.life
        taken: list[str] = []
        cursor = b"0-0"
        while len(taken) < limit:
            count = min(_STEP, limit - len(taken))
            command = ("XAUTOCLAIM", self.stream.key, self.name, self.consumer, round(idle_s * 1000), cursor, "COUNT", count)
            ((cursor, ids, *_),) = self._ask((*command, "JUSTID"))
            taken += [found.decode() for found in ids]
            if cursor == b"0-0":
                break
        return taken

    def deliver(self, entry_id: str) -> Entry | None:
        """Deliver a reclaimed entry to this consumer, counted; None when it is gone from the stream, and so acknowledged.

        One at a time, just before it is handled: an entry that kills its reader then counts its own deaths only.

        **Guarantee:** the count is written before the entry is handled.
        """
        claim = ("XCLAIM", self.stream.key, self.name, self.consumer, 0, checked_id(entry_id))
        count = ("XPENDING", self.stream.key, self.name, entry_id, entry_id, 1)
        found, pending = self._ask(claim, count)
        if not found or not found[0] or not found[0][1]:  # Redis 6.2 tells of a deleted entry as one without fields
            self.ack([entry_id])
            return None
        return entry_of(found[0], pending[0][3] if pending else 1)

    def keep(self, ids: Sequence[str]) -> None:
        """Let the entries in hand stay this consumer's for longer, uncounted: others' `reclaim` finds them fresh.

        For whoever waits, for a database say, with entries in hand. Raises `StoreUnavailable`.
        """
        if ids:
            self._ask(("XCLAIM", self.stream.key, self.name, self.consumer, 0, *map(checked_id, ids), "JUSTID"))

    def pending(self, *, limit: int = 100, first: str = "-", last: str = "+") -> list[Pending]:
        """Return entries that are delivered and not acknowledged, the oldest first. Raises `StoreUnavailable`."""
        (found,) = self._ask(("XPENDING", self.stream.key, self.name, first, last, limit))
        return [Pending(raw[0].decode(), raw[1].decode(), raw[2] / 1000, raw[3]) for raw in found]

    # ---- leaving

    def leave(self) -> None:
        """Delete this consumer. Raises `ConsumerBusy` when entries are pending with it: they would be lost to the group.

            group.ack(done)
            group.leave()

        **Guarantee:** looked at and deleted in one step of the server, so that nothing pending is lost.
        """
        ((_, held),) = self._ask(_leave.command([self.stream.key], [self.name, self.consumer, 0, LIFE]))
        if held:
            raise ConsumerBusy(f"{held} entries are pending with consumer {self.consumer!r}; reclaim them first", pending=held)

    def forget_idle(self, idle_s: float) -> int:
        """Delete the consumers that did nothing for so long and have nothing pending; return how many.

        Raises `StoreUnavailable`.

        **Guarantee:** as `leave`.
        """
        ((gone, _),) = self._ask(_leave.command([self.stream.key], [self.name, "", round(idle_s * 1000), LIFE]))
        return int(gone)

    def destroy(self) -> bool:
        """Delete the group, with what is pending in it, and tell whether it was there. Raises `StoreUnavailable`."""
        (count,) = self._ask(("XGROUP", "DESTROY", self.stream.key, self.name))
        return bool(count)

    # ---- asking

    def _ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        try:
            return self.stream.role().ask(commands)
        except StoreRefused as exc:
            self._lost(exc)
            raise

    def _wait(self, command: tuple[Any, ...]) -> Any:
        # Not one of the role's turns: it would be taken from those who have something to ask.
        try:
            with self.stream.role().use() as client:
                return client.ask([command])[0]
        except StoreRefused as exc:
            self._lost(exc)
            raise

    def _lost(self, exc: StoreRefused) -> None:
        """Begin a new life when the error says that the group is gone."""
        if "NOGROUP" in str(exc) or "no such key" in str(exc) or "UNBLOCKED" in str(exc):
            self.ensure()
            raise StreamGone(f"group {self.name!r} of {self.stream.key} was gone and is made anew") from exc
