"""One caller's question to the cache, and what its answering leaves to be done."""

from __future__ import annotations

from typing import Any, Final

from worker.cache.codec import Codec
from worker.cache.entry import Entry
from worker.cache.local import LocalCache
from worker.cache.names import tags_command
from worker.cache.terms import Counters, Terms
from worker.store import keys


class Missing:
    """The type of `MISSING`."""

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


#: No value is cached; `None` is a value: the loader found nothing.
MISSING: Final = Missing()


class Call:
    """A key with all that its reading needs."""

    __slots__ = (
        "busy_s", "codec", "counters", "due", "due_id", "entry_key", "key", "lease_key", "load_s", "local", "of_many",
        "outcome", "tags", "tags_command", "terms", "ticket", "ttl",
    )  # fmt: skip

    def __init__(
        self,
        key: str,
        tags: tuple[str, ...],
        ttl: float,
        codec: Codec,
        terms: Terms,
        counters: Counters,
        local: LocalCache | None,
    ) -> None:
        self.key, self.tags, self.ttl = key, tags, ttl
        self.codec, self.terms, self.counters, self.local = codec, terms, counters, local
        self.entry_key = keys.cache_entry(key)
        self.lease_key = keys.cache_lease(key)
        self.tags_command = tags_command(tags) if tags else ()
        self.ticket = -1 if local is None else local.ticket()
        #: A refresh is due, of the entry with this id.
        self.due, self.due_id = False, b""
        self.load_s = 0.0
        #: For how long a refresh need not be tried again.
        self.busy_s = 0.0
        #: What became of a load: `filled`, `refused`, `failed`, `away`.
        self.outcome = "failed"
        #: The key, as its caller names it, alone in a list: for a loader that takes many.
        self.of_many: list[Any] | None = None

    @property
    def tag_bytes(self) -> list[bytes]:
        """The names of the tags as they stand in an entry."""
        return [tag.encode() for tag in self.tags]

    @property
    def stale_ms(self) -> float:
        """How long past its ttl a value is served while it is refreshed, in milliseconds."""
        return 1000 * self.terms.stale_while_revalidate

    def again(self) -> Call:
        """Return the same question, asked later."""
        later = Call(self.key, self.tags, self.ttl, self.codec, self.terms, self.counters, self.local)
        later.due_id, later.of_many = self.due_id, self.of_many
        return later

    def keep(self, entry: Entry, left_ms: float) -> None:
        """Keep an entry in the memory of this process."""
        if self.local is not None:
            tags = {*self.tags, *(tag.name.decode() for tag in entry.tags)}
            self.local.put(self.key, tags, (entry.flags, entry.payload), left_ms / 1000, self.ticket)
