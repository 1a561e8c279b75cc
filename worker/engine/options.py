"""The options of a call, looked at before anything is written: what is wrong is named, with the form it should have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec
from celery import Celery
from celery.exceptions import QueueNotFound

from worker.clock import parse_moment
from worker.errors import InvalidJob, UnknownQueue

#: Seconds in a hundred years: what lies further ahead does not fit the arithmetic of dates on its way.
FARTHEST_S = 100 * 365.25 * 86_400

#: Characters of an id or key: an index entry has its limits, and a longer one is a payload.
LONGEST = 255

#: Bytes of a call's metadata as JSON, and characters of the URL that is told of its end.
_METADATA, _URL = 4096, 2048


def check_options(options: dict[str, Any]) -> None:
    """Raise `InvalidJob` that names the first option of a call which cannot be what it says."""
    for name, value in options.items():
        if value is not None and (check := _CHECKS.get(name)) is not None:
            check(name, value)


def _check_text(name: str, value: Any) -> None:
    if not is_storable(value):
        raise InvalidJob(f"{name} {repr(value)[:60]} is not a text of 1 to {LONGEST} characters without U+0000", field=name)


def _check_seconds(name: str, value: Any) -> None:
    if not is_seconds(value):
        raise InvalidJob(f"{name}: {value!r} is not a number of seconds", field=name)


def is_seconds(value: Any) -> bool:
    """Tell whether a value is a number of seconds."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_storable(value: Any) -> bool:
    """Tell whether a value is a text that an id or a key can be."""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST or "\0" in value:
        return False
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def check_url(name: str, value: Any) -> None:
    """Raise `InvalidJob` unless a URL may be told of a job's end; whether its host may be called is judged when it is."""
    try:
        parts = urlsplit(value) if isinstance(value, str) and len(value) <= _URL and value.isprintable() else None
        sound = parts and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        sound = False
    if not sound or " " in value:
        why = f"{value!r:.60} is not a URL of http or https, without credentials, of at most {_URL} characters"
        raise InvalidJob(f"{name}: {why}", field=name)


def check_metadata(name: str, value: Any) -> None:
    """Raise `InvalidJob` unless a value is a JSON object that a job can carry along."""
    try:
        text = msgspec.json.encode(value) if isinstance(value, dict) else b""
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise InvalidJob(f"{name}: it cannot be written as JSON: {exc}", field=name) from exc
    if not text or len(text) > _METADATA or b"\\u0000" in text:
        why = f"it is not a JSON object of at most {_METADATA:,} bytes without U+0000"
        raise InvalidJob(f"{name}: {why}", field=name)


def _check_time(name: str, value: Any) -> None:
    may_be_seconds, may_be_moment = name != "eta", name != "countdown"
    if may_be_seconds and is_seconds(value):
        if abs(value) <= FARTHEST_S:
            return
        raise InvalidJob(f"{name}: {value!r} seconds is not within a hundred years", field=name)
    if may_be_moment and isinstance(value, datetime):
        return
    if may_be_moment and isinstance(value, str):
        moment_of(name, value)
        return
    forms = " or ".join(["a number of seconds"] * may_be_seconds + ["a datetime"] * may_be_moment)
    raise InvalidJob(f"{name}: {value!r} is not {forms}", field=name)


#: How each option is looked at; what is not among them is Celery's to judge.
_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "task_id": _check_text, "idempotency_key": _check_text, "caller": _check_text, "unique_key": _check_text,
    "time_limit": _check_seconds, "soft_time_limit": _check_seconds, "callback_url": check_url, "metadata": check_metadata,
    "countdown": _check_time, "eta": _check_time, "expires": _check_time,
}  # fmt: skip


def moment_of(name: str, value: str | None) -> datetime | None:
    """Return the moment an option's text stands for; None for none. Raises `InvalidJob` that names the option."""
    if not value:
        return None
    try:
        return parse_moment(value)
    except ValueError as exc:
        raise InvalidJob(f"{name}: {exc}", field=name) from exc


def checked_priority(value: Any) -> int:
    """Return a priority, 5 when none is given. Raises `InvalidJob`."""
    if value is None:
        return 5
    if isinstance(value, int) and 0 <= value <= 9:
        return value
    raise InvalidJob(f"priority {value!r} is not a whole number from 0 (first) to 9 (last)", field="priority")


@contextmanager
def known_queue(app: Celery, queue: Any) -> Iterator[None]:
    """Turn Celery's word that a queue is not known into `UnknownQueue`, which names those that are."""
    try:
        yield
    except QueueNotFound as exc:
        raise UnknownQueue(f"queue {queue!r} is not one of HOLDFAST_QUEUES: {', '.join(app.amqp.queues)}") from exc
