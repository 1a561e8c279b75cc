"""Streams as people look at them: how far behind each group is, and what its consumers hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worker.errors import StoreRefused
from worker.streams.entry import milliseconds
from worker.streams.group import LIFE
from worker.streams.stream import Stream

#: Entries counted in one round trip where the server does not know a lag.
_PAGE = 1000


@dataclass(frozen=True)
class GroupState:
    """A group: entries it has not read (`lag`) and not acknowledged, and the age of the oldest of the latter in seconds."""

    stream: str
    group: str
    lag: int
    pending: int
    oldest_s: float | None
    consumers: int
    last_delivered: str


@dataclass(frozen=True)
class ConsumerState:
    """A consumer of a group: entries it holds unacknowledged, and the seconds since it last asked for any."""

    name: str
    pending: int
    idle_s: float


def consumers_of(stream: Stream, group: str) -> list[ConsumerState]:
    """Return the consumers of a group, the one that was last heard of first. Raises `StoreUnavailable`."""
    (found,) = stream.role().ask([("XINFO", "CONSUMERS", stream.key, group)])
    told = [_fields(raw) for raw in found]
    states = [ConsumerState(one["name"].decode(errors="replace"), int(one["pending"]), int(one["idle"]) / 1000) for one in told]
    return sorted((one for one in states if not one.name.startswith(LIFE)), key=lambda one: one.idle_s)


def groups_of(stream: Stream) -> list[GroupState]:
    """Return the groups of a stream; none when there is no such stream.

        for group in groups_of(stream):
            print(group.group, group.lag)

    Raises `StoreUnavailable`.

    **Guarantee:** the lag is exact at the moment it is asked for: where the server does not know it (Redis 6.2, or after
    deletions) the entries are counted.
    """
    try:
        found, now = stream.role().ask([("XINFO", "GROUPS", stream.key), ("TIME",)])
    except StoreRefused as exc:
        if "no such key" in str(exc):
            return []
        raise
    now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
    return [_state(stream, _fields(raw), now_ms) for raw in found]


def _state(stream: Stream, told: dict[str, Any], now_ms: int) -> GroupState:
    name, last = told["name"].decode(), told["last-delivered-id"].decode()
    (summary,) = stream.role().ask([("XPENDING", stream.key, name)])
    oldest = summary[1]
    lag = told.get("lag")
    consumers, keeper = int(told["consumers"]), _has_life(stream, name)
    return GroupState(
        stream.key, name, _count_after(stream, last) if lag is None else int(lag), int(told["pending"]),
        None if oldest is None else max(0.0, (now_ms - milliseconds(oldest.decode())) / 1000), consumers - keeper, last,
    )  # fmt: skip


def _has_life(stream: Stream, group: str) -> bool:
    (found,) = stream.role().ask([("XINFO", "CONSUMERS", stream.key, group)])
    return any(_fields(raw)["name"].startswith(LIFE.encode()) for raw in found)


def _count_after(stream: Stream, last: str) -> int:
    count, first = 0, f"({last}"
    while page := stream.range(first, limit=_PAGE):
        count += len(page)
        first = f"({page[-1].id}"
    return count


def _fields(raw: Sequence[Any] | dict[Any, Any]) -> dict[str, Any]:
    pairs = raw.items() if isinstance(raw, dict) else zip(raw[::2], raw[1::2], strict=True)
    return {name.decode(): value for name, value in pairs}
