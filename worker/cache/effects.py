"""What the protocol of the cache asks of whoever walks it, a thread or a task."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from worker.cache.signals import Signal
from worker.errors import StoreUnavailable


@dataclass(frozen=True, slots=True)
class Ask:
    """Commands to run in one round trip."""

    commands: Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Load:
    """The caller's loader is to run, with these arguments."""

    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Await:
    """A signal is awaited, at most so many seconds."""

    signal: Signal
    seconds: float


@dataclass(frozen=True, slots=True)
class Send:
    """A job is to be sent that loads under the lease of this token."""

    job: Callable[[str], None]
    token: str


Steps = Generator[Ask | Load | Await | Send, Any, Any]


class Away(Exception):
    """The cache Redis is away; not to be mixed up with a loader's own `StoreUnavailable`."""


def ask(commands: Sequence[tuple[Any, ...]]) -> Generator[Ask, Any, list[Any]]:
    """Ask Redis. Raises `Away`."""
    try:
        answers: list[Any] = yield Ask(commands)
    except StoreUnavailable as exc:
        raise Away from exc
    return answers
