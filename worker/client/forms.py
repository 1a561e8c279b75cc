"""The shapes of what a client hands in and gets back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Self, TypedDict

#: The states in which nothing more happens to a job by itself.
FINAL = frozenset({"succeeded", "failed", "cancelled", "expired", "discarded"})

#: Seconds, a text such as `90s`, or the object.
Duration = float | str | timedelta


class Options(TypedDict, total=False):
    """What may be said of a job beside its task and arguments."""

    queue: str
    #: 0 goes first, 9 last.
    priority: int
    delay: Duration
    at: datetime | str
    expires: Duration | datetime
    max_attempts: int
    #: At most one active job of the task has this text, for `unique_for` at most.
    unique: str
    unique_for: Duration
    callback_url: str
    #: A JSON object of at most 4 kB that is found again on the job.
    metadata: Mapping[str, Any]


class _Named(TypedDict):
    task: str


class Call(_Named, Options, total=False):
    """One job of many."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    idempotency_key: str


class Filters(TypedDict, total=False):
    """Which jobs to list."""

    state: str | Sequence[str]
    task: str
    queue: str
    #: Whose jobs; for a key with the scope admin.
    caller: str
    since: datetime | str
    until: datetime | str
    #: A text that stands in the arguments or the error.
    search: str


@dataclass(frozen=True)
class Event:
    """What happened to a job: `state` (`accepted`, `running`, `retried`, `succeeded`, …), or `progress`.

    One with an id can be gone on after, see `events(last_id=…)`; progress has none.
    """

    name: str
    data: dict[str, Any]
    id: str | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing more will come."""
        return self.name == "state" and self.data.get("state") in FINAL


@dataclass(frozen=True)
class Job:
    """A job as it stood when it was asked for; those of a list have no result, for one that is asked for alone has."""

    id: str
    task: str
    queue: str
    #: scheduled, queued, running; succeeded, failed, cancelled, expired, discarded.
    state: str
    priority: int
    created_at: datetime
    available_at: datetime
    #: Its arguments as text for people.
    args: str = "()"
    kwargs: str = "{}"
    attempt: int = 0
    max_attempts: int | None = None
    progress: Any = None
    result: Any = None
    error: str | None = None
    caller: str | None = None
    idempotency_key: str | None = None
    callback_url: str | None = None
    metadata: dict[str, Any] | None = None
    cancel_requested: bool = False
    expires_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    #: Runs that did not end it: `attempt`, `started_at`, `ended_at`, `outcome`, `error`.
    attempts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether it has ended, well or not."""
        return self.state in FINAL

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """Return the job of an answer; what a newer gateway tells beside that is left out."""
        told: dict[str, Any] = {name: document[name] for name in _NAMES if name in document}
        moments = {name: datetime.fromisoformat(text) for name, text in told.items() if name.endswith("_at") and text}
        return cls(**{**told, **moments})


_NAMES = tuple(one.name for one in fields(Job))
