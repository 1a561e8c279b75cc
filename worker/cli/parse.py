"""Reading what people type: durations and moments; `worker.typed` reads JSON."""

from __future__ import annotations

from datetime import datetime, timedelta

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
