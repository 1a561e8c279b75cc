"""The keys of both servers: those that never end, are not ours, are big, or are asked for all the time."""

from __future__ import annotations

from collections.abc import Iterator

from worker.doctor.check import Check, Severity
from worker.doctor.keyspace import end_copies
from worker.doctor.site import Site
from worker.ledger import examine

#: Bytes that make a string big: to send it takes longer than a caller of the cache waits.
_BIG_STRING = 8 * 1024 * 1024
#: Bytes that make a list, hash, set or stream big; 100,000 events take about thirty million.
_BIG = 256 * 1024 * 1024
#: The measure of LFU, logarithmic up to 255, that only keys reach which are read hundreds of thousands of times.
_HOT = 200
#: Keys named in one line.
_NAMED = 3
#: Seconds that a cache entry without a time to live is given: a day, as the longest-lived of its kind have.
_LIFE_S = 86_400


def _queues(site: Site) -> set[str]:
    """Return the names of all queues."""
    with site.ledger() as conn:
        return examine.queue_names(conn) | {*site.conf.queues, site.conf.foreign_queue}


def _endless(site: Site) -> Iterator[str]:
    queues = _queues(site)
    for server in site.servers:
        for prefix, (count, example) in sorted(server.keyspace.endless(server.name, queues).items()):
            yield f"{count:,} keys {prefix}… on Redis ({server.name}) have no time to live, such as {example!r}"


def _end(site: Site) -> str:
    """Give the copies in the cache a life of a day; on the other server a key without an end may be somebody's lock."""
    return f"{end_copies(site.cache.role, _LIFE_S):,} keys of the cache end in a day"


def _undeclared(site: Site) -> Iterator[str]:
    queues = _queues(site)
    for server in site.servers:
        for prefix, (count, example) in sorted(server.keyspace.undeclared(server.name, queues).items()):
            yield f"{count:,} keys {prefix}… on Redis ({server.name}) are not Holdfast's, such as {example!r}"


def _big(site: Site) -> Iterator[str]:
    for server in site.servers:
        found = {one.key: one for one in server.sample if one.bytes >= (_BIG_STRING if one.type == "string" else _BIG)}
        for one in sorted(found.values(), key=lambda one: -one.bytes)[:_NAMED]:
            yield f"the {one.type} {one.key!r} on Redis ({server.name}) takes {one.bytes / 1024 / 1024:,.0f} MB"


def _hot(site: Site) -> Iterator[str]:
    for server in site.servers:
        found = {one.key: one for one in server.sample if (one.frequency or 0) >= _HOT}
        for one in sorted(found.values(), key=lambda one: -(one.frequency or 0))[:_NAMED]:
            yield f"{one.key!r} on Redis ({server.name}) is asked for all the time ({one.frequency} of 255 by LFU)"


CHECKS = (
    Check(
        "keys.endless", Severity.WARNING,
        "what has no end fills the memory: a cache entry stays stale for ever, a lock is held for ever",
        "find who writes them; `--fix` gives those of the cache a day, and `EXPIRE` ends others",
        _endless, _end,
    ),
    Check(
        "keys.undeclared", Severity.WARNING,
        "another program on this server shares its memory and its policy, and a flush of either is one of both",
        "give the other program a server of its own, or remove the keys with `UNLINK`",
        _undeclared,
    ),
    Check(
        "keys.big", Severity.WARNING,
        "to read or delete it holds up everybody else, and takes longer than callers wait",
        "keep large values in Postgres or in files, and their names here; for a stream see `streams.lag`",
        _big,
    ),
    Check(
        "keys.hot", Severity.NOTICE,
        "one key is served by one core, whatever the number of servers",
        "let each process keep it in its memory for a moment: `local=LocalCache(…)` where it is declared",
        _hot,
    ),
)  # fmt: skip
