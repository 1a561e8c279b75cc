"""The answers of the gateway as the OpenAPI document tells them; they are written by hand-made dictionaries, which costs less."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from worker.states import JobState


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ProblemDetails(_Shape):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    #: The same at every door.
    code: str
    #: Which part of the request it was.
    field: str | None = None
    instance: str | None = None


class Accepted(_Shape):
    """A job that is committed."""

    id: str
    href: str


class Item(_Shape):
    """What became of one job of a batch: accepted, or refused with a problem."""

    id: str | None = None
    href: str | None = None
    problem: ProblemDetails | None = None


class Batch(_Shape):
    """What became of a batch; its items in the order they came in."""

    accepted: int
    refused: int
    items: list[Item]


class ListedJob(_Shape):
    """A job in a list."""

    id: str
    task: str
    queue: str
    priority: int
    state: JobState
    #: Its arguments, as text for people.
    args: str
    kwargs: str
    attempt: int
    progress: Any
    error: str | None
    caller: str | None
    created_at: datetime
    available_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Attempt(_Shape):
    """A run that did not end its job."""

    attempt: int
    started_at: datetime | None
    ended_at: datetime
    outcome: str
    error: str | None


class Job(ListedJob):
    """A job."""

    max_attempts: int | None
    #: What the task returned.
    result: Any
    idempotency_key: str | None
    callback_url: str | None
    metadata: dict[str, Any] | None
    cancel_requested: bool
    expires_at: datetime | None
    attempts: list[Attempt]


class Page(_Shape):
    """Jobs, and the cursor of those behind them, if there may be any."""

    jobs: list[ListedJob]
    next: str | None


class Acted(_Shape):
    """What was done to a job."""

    id: str
    done: str


class Task(_Shape):
    """A task that can be asked for."""

    name: str
    queue: str
    #: The JSON Schema of its arguments by name.
    arguments: dict[str, Any]


class Tasks(_Shape):
    """The tasks this caller may ask for."""

    tasks: list[Task]


class Queue(_Shape):
    """A queue and what waits in it."""

    queue: str
    scheduled: int
    backlog: int
    sent: int
    running: int
    oldest: datetime | None
    in_redis: int | None
    paused: bool
    window: int


class Queues(_Shape):
    """The queues this caller may use."""

    queues: list[Queue]


class Documents(_Shape):
    """Records as the command line prints them."""

    items: list[dict[str, Any]]


class Statistics(_Shape):
    """What ended lately and what waits, as `holdfast stats` counts it."""

    activity: dict[str, Any]
    backlog: dict[str, Any]


class Health(_Shape):
    """How the gateway is."""

    status: str


class Finding(_Shape):
    """Something that is wrong: what was found, why it matters, how to mend it, and whether `holdfast doctor --fix` does."""

    check: str
    severity: str
    found: str
    why: str
    mend: str
    fixable: bool


class Readiness(_Shape):
    """Whether jobs can be accepted, which takes Postgres; Redis is told of. The rest is told when asked for."""

    status: str
    postgres: str
    redis: str
    #: How bad the worst finding is: notice, warning or critical.
    worst: str | None = None
    findings: list[Finding] | None = None
    #: The checks that could not be made, and why.
    skipped: dict[str, str] | None = None
