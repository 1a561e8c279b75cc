"""The room a provider says it has left: kept in Redis, so that no process of the fleet calls before there is some."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import NamedTuple

from worker.errors import LimitExceeded, StoreUnavailable
from worker.store import keys, limits
from worker.tasks.chat.request import Chat
from worker.tasks.outbound import backoff, parse_retry_after
from worker.telemetry import OUTAGES

#: Seconds to wait after a 429 that does not say how many.
UNTOLD_S = 5.0
#: What is told apart: a pause after a 429, and what is left of requests and tokens.
_PAUSED, _REQUESTS, _TOKENS = KINDS = ("paused", "requests", "tokens")

_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|ms|m|s|us|µs|ns)")
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]+)?")
#: A number from here on is a moment since 1970, not a duration.
_EPOCH_S = 1e9


class Room(NamedTuple):
    """What the provider says it has left of something, and in how many seconds it will have more."""

    kind: str
    left: int
    until_s: float


def told_by(headers: Mapping[str, str], status: int, now: datetime) -> list[Room]:
    """Return what the headers of an answer say: `x-ratelimit-remaining-*` and `-reset-*`, and of a 429 how long to wait.

    What makes no sense is taken for not said. No wait is longer than `backoff.LONGEST_S`.
    """
    found = []
    for kind in (_REQUESTS, _TOKENS):
        left = headers.get(f"x-ratelimit-remaining-{kind}", "")
        reset_s = seconds(headers.get(f"x-ratelimit-reset-{kind}", ""), now)
        if re.fullmatch(r"[0-9]{1,15}", left) and reset_s:
            found.append(Room(kind, int(left), reset_s))
    if status == 429:
        found.append(Room(_PAUSED, 0, _asked_s(headers, found, now)))
    return found


def _asked_s(headers: Mapping[str, str], found: Iterable[Room], now: datetime) -> float:
    """Return the seconds a 429 asks to wait: by `retry-after-ms`, `retry-after`, or the reset of what is used up."""
    if _NUMBER.fullmatch(milliseconds := headers.get("retry-after-ms", "").strip()):
        return min(float(milliseconds) / 1000, backoff.LONGEST_S)
    after_s = parse_retry_after(headers.get("retry-after", ""), now)
    if after_s is not None:
        return after_s
    return max((room.until_s for room in found if room.left == 0), default=UNTOLD_S)


def seconds(text: str, now: datetime) -> float | None:
    """Return the seconds a reset header says: `6m0s`, `20ms`, `12.5`, or a moment; None when it makes no sense."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        value = float(text)
        found = value - now.timestamp() if value >= _EPOCH_S else value
    elif text and _PART.sub("", text) == "":
        found = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return None
        found = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(found, 0.0), backoff.LONGEST_S)


def note(chat: Chat, rooms: Iterable[Room]) -> None:
    """Let the fleet know; the last word of the provider holds. While Redis is away the provider refuses by itself."""
    commands = [("SET", _key(chat, room.kind), room.left, "PX", max(1, round(room.until_s * 1000))) for room in rooms]
    try:
        if commands:
            limits().ask(commands)
    except StoreUnavailable:
        OUTAGES.labels("llm room", "not noted").inc()


def check(chat: Chat, tokens: int) -> None:
    """Raise `LimitExceeded` with `retry_after` while the provider has no room for a call of so many tokens."""
    names = [_key(chat, kind) for kind in KINDS]
    try:
        answers = limits().ask([command for name in names for command in (("GET", name), ("PTTL", name))])
    except StoreUnavailable:
        OUTAGES.labels("llm room", "open").inc()
        return
    needed = {_PAUSED: 1, _REQUESTS: 1, _TOKENS: tokens}
    for kind, left, life_ms in zip(KINDS, answers[::2], answers[1::2], strict=True):
        if left is not None and int(left) < needed[kind]:
            raise LimitExceeded(
                f"the provider of {chat.model!r} has said that it has no room: {kind}, {int(left)} left",
                limit=f"provider:{chat.model}", retry_after=max(life_ms, 1) / 1000,
            )  # fmt: skip


def _key(chat: Chat, kind: str) -> str:
    provider = blake2b(chat.base_url.encode(), digest_size=8).hexdigest()
    return keys.llm_room(f"{provider}:{chat.model}", kind)
