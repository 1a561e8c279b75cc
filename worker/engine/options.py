"""The options of a call, looked at before anything is written: what is wrong is named, with the form it should have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from celery import Celery
from celery.exceptions import QueueNotFound

from worker.clock import parse_moment
from worker.errors import InvalidJob, UnknownQueue

#: Seconds in a hundred years: what lies further ahead does not fit the arithmetic of dates on its way.
_FARTHEST_S = 100 * 365.25 * 86_400

#: Characters of an id or key: an index entry has its limits, and a longer one is a payload.
LONGEST = 255


def check_options(options: dict[str, Any]) -> None:
    """Raise `InvalidJob` that names the first option of a call which cannot be what it says."""
    for name in ("task_id", "idempotency_key", "caller", "unique_key"):
        if options.get(name) is not None and not _is_storable(options[name]):
            raise InvalidJob(f"{name} {repr(options[name])[:60]} is not a text of 1 to {LONGEST} characters without U+0000")
    for name in ("time_limit", "soft_time_limit"):
        if options.get(name) is not None and not is_seconds(options[name]):
            raise InvalidJob(f"{name}: {options[name]!r} is not a number of seconds")
    for name in ("countdown", "eta", "expires"):
        if options.get(name) is not None:
            _check_time(name, options[name], may_be_seconds=name != "eta", may_be_moment=name != "countdown")


def is_seconds(value: Any) -> bool:
    """Tell whether a value is a number of seconds."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_storable(value: Any) -> bool:
    try:
        return isinstance(value, str) and 0 < len(value) <= LONGEST and b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def _check_time(name: str, value: Any, *, may_be_seconds: bool, may_be_moment: bool) -> None:
    if may_be_seconds and is_seconds(value):
        if abs(value) <= _FARTHEST_S:
            return
        raise InvalidJob(f"{name}: {value!r} seconds is not within a hundred years")
    if may_be_moment and isinstance(value, datetime):
        return
    if may_be_moment and isinstance(value, str):
        moment_of(name, value)
        return
    forms = " or ".join(["a number of seconds"] * may_be_seconds + ["a datetime"] * may_be_moment)
    raise InvalidJob(f"{name}: {value!r} is not {forms}")


def moment_of(name: str, value: str | None) -> datetime | None:
    """Return the moment an option's text stands for; None for none. Raises `InvalidJob` that names the option."""
    if not value:
        return None
    try:
        return parse_moment(value)
    except ValueError as exc:
        raise InvalidJob(f"{name}: {exc}") from exc


def checked_priority(value: Any) -> int:
    """Return a priority, 5 when none is given. Raises `InvalidJob`."""
    if value is None:
        return 5
    if isinstance(value, int) and 0 <= value <= 9:
        return value
    raise InvalidJob(f"priority {value!r} is not a whole number from 0 (first) to 9 (last)")


@contextmanager
def known_queue(app: Celery, queue: Any) -> Iterator[None]:
    """Turn Celery's word that a queue is not known into `UnknownQueue`, which names those that are."""
    try:
        yield
    except QueueNotFound as exc:
        raise UnknownQueue(f"queue {queue!r} is not one of HOLDFAST_QUEUES: {', '.join(app.amqp.queues)}") from exc
