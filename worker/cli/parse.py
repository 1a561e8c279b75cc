"""Reading what people type: durations and moments, JSON values."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any, NoReturn

from worker.clock import now, parse_duration, parse_moment


def duration(text: str) -> timedelta:
    """Parse `10s`, `5m`, `1h30m`. Raises `ValueError`."""
    return parse_duration(text)


def seconds(span: timedelta | None) -> float | None:
    """Return a duration in seconds; None stays None."""
    return None if span is None else span.total_seconds()


def moment(text: str) -> datetime:
    """Parse an ISO 8601 moment. Raises `ValueError`."""
    return parse_moment(text)


def past(text: str) -> datetime:
    """Parse a moment, or a duration as that long ago. Raises `ValueError`."""
    try:
        return now() - parse_duration(text)
    except OverflowError as exc:
        raise ValueError(f"{text!r} ago is before the year 1") from exc
    except ValueError:
        pass
    try:
        return parse_moment(text)
    except ValueError as exc:
        raise ValueError(f"{text!r} is neither a duration like 2h nor a time like 2030-01-31T08:00:00+01:00") from exc


def json_value(text: str) -> Any:
    """Return the JSON value that the text is, or the text itself when it is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object. Raises `ValueError` that says what is wrong with it."""
    value = _json(text, '{"name": "value"}')
    if not isinstance(value, dict):
        raise ValueError(f'{text!r} is not a JSON object; write one like {{"name": "value"}}')
    return value


def json_list(text: str) -> list[Any]:
    """Parse a JSON list. Raises `ValueError` that says what is wrong with it."""
    value = _json(text, '[1, "two"]')
    if not isinstance(value, list):
        raise ValueError(f'{text!r} is not a JSON list; write one like [1, "two"]')
    return value


def _json(text: str, form: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError as exc:
        raise ValueError(f"{text!r} is not JSON ({exc}); write it like {form}") from exc


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
