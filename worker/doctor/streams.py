"""The streams: whether they are read, whether somebody holds on to entries, and what was set aside."""

from __future__ import annotations

from collections.abc import Iterator

from worker.doctor.check import Check, Severity
from worker.doctor.site import Site, fields
from worker.errors import StoreRefused
from worker.store import keys
from worker.streams import Group, Stream, groups_of
from worker.streams.group import LIFE

#: Entries a group may be behind, and seconds that it may hold an entry without acknowledging it.
_LAG, _HELD_S = 10_000, 300.0
#: Seconds after which a consumer that does nothing is taken for gone.
_IDLE_S = 3600.0

#: Groups of readers that come and go are let be: only what is left of them is told.
_STREAMS = (keys.intake(), keys.events())


def _lags(site: Site) -> Iterator[str]:
    for name in _STREAMS:
        for group in groups_of(Stream(name)):
            if group.lag > _LAG:
                yield f"group {group.group!r} of {name} has {group.lag:,} entries to read"
            if group.oldest_s is not None and group.oldest_s > _HELD_S and group.pending:
                yield f"group {group.group!r} of {name} holds {group.pending:,} entries, the oldest for {group.oldest_s:,.0f} s"


def _dead(site: Site) -> Iterator[str]:
    for name in _STREAMS:
        if count := len(Stream(keys.dead(name))):
            yield f"{count:,} entries of {name} were set aside"


def _idle(site: Site) -> Iterator[str]:
    for name, group, consumer, idle_s, pending in _idle_consumers(site):
        yield f"consumer {consumer!r} of group {group!r} of {name} did nothing for {idle_s:,.0f} s and holds {pending:,} entries"


def _idle_consumers(site: Site) -> Iterator[tuple[str, str, str, float, int]]:
    for name in _STREAMS:
        for group in groups_of(Stream(name)):
            for raw in _consumers(site, name, group.group):
                told = fields(raw)
                consumer, idle_s = told["name"].decode(), int(told["idle"]) / 1000
                if idle_s >= _IDLE_S and not consumer.startswith(LIFE):
                    yield name, group.group, consumer, idle_s, int(told["pending"])


def _consumers(site: Site, stream: str, group: str) -> list[object]:
    try:
        return list(site.coordination.ask("XINFO", "CONSUMERS", stream, group))
    except StoreRefused:
        return []  # gone since it was listed


def _forget(site: Site) -> str:
    """Delete the consumers that hold nothing; looked at and deleted in one step of the server."""
    groups = {(name, group) for name, group, *_ in _idle_consumers(site)}
    gone = sum(Group(Stream(name), group, consumer="doctor").forget_idle(_IDLE_S) for name, group in groups)
    return f"{gone} consumers that did nothing and held nothing are gone"


CHECKS = (
    Check(
        "streams.lag", Severity.WARNING,
        "jobs are accepted late, or a service hears late of what happened; the stream is kept for it and grows",
        "see `holdfast streams lag`: run more relays for the intake, or mend the reader of the events; remove a group that "
        "nobody reads with `XGROUP DESTROY`",
        _lags,
    ),
    Check(
        "streams.dead", Severity.WARNING,
        "each was a job that somebody asked for and that could not be accepted",
        "see `holdfast streams dead` for the reasons; `holdfast streams requeue` puts them back",
        _dead,
    ),
    Check(
        "streams.idle-consumers", Severity.NOTICE,
        "they make lists of consumers long; what one holds is waiting to be taken over",
        "`--fix` deletes those that hold nothing; what others hold is taken over by the next reader that reclaims",
        _idle, _forget,
    ),
)  # fmt: skip
