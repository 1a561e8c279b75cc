"""A schedule as a form holds it: read out of what was entered, and written into what is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from worker.clock import parse_duration
from worker.errors import InvalidSchedule, UnknownQueue
from worker.ledger.schedules import Spec
from worker.settings import settings
from worker.typed import json_list, json_object
from worker.wording import did_you_mean

#: The options of a schedule that the form has fields for; others stay as they are.
_SENDING = ("queue", "priority", "expires")


def spec_of(given: Mapping[str, str], name: str, options: Mapping[str, Any] | None = None) -> Spec:
    """Return the schedule that a form describes. Raises `InvalidSchedule` and `UnknownQueue` with the field that is wrong."""
    kept = {key: value for key, value in (options or {}).items() if key not in _SENDING}
    every = _read("every", given, _seconds)
    return Spec(
        name, given.get("task", "").strip(), _read("args", given, json_list) or [], _read("kwargs", given, json_object) or {},
        kept | _sending(given), given.get("crontab", "").strip() or None, every, given.get("timezone", "").strip() or "UTC",
        given.get("enabled") == "yes", given.get("catch_up", "once"),
    )  # fmt: skip


def draft_of(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of the form for a schedule as it stands."""
    options = {name: row["options"].get(name) for name in _SENDING}
    every, expires = row["every_s"], options["expires"]
    return {
        "name": row["name"], "task": row["task"], "args": json.dumps(row["args"], ensure_ascii=False),
        "kwargs": json.dumps(row["kwargs"], ensure_ascii=False), "crontab": row["crontab"] or "",
        "every": _span(every), "timezone": row["timezone"], "catch_up": row["catch_up"],
        "enabled": "yes" if row["enabled"] else "", "queue": str(options["queue"] or ""),
        "priority": "" if options["priority"] is None else str(options["priority"]),
        "expires": _span(expires),
    }  # fmt: skip


def _sending(given: Mapping[str, str]) -> dict[str, Any]:
    queue = given.get("queue", "").strip()
    if queue and queue not in settings().queues:
        raise UnknownQueue(f"queue: there is no {queue!r}{did_you_mean(queue, settings().queues)}")
    found = {
        "queue": queue or None, "priority": _read("priority", given, _priority), "expires": _read("expires", given, _seconds),
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def _read(name: str, given: Mapping[str, str], reader: Callable[[str], Any]) -> Any:
    text = given.get(name, "").strip()
    try:
        return reader(text) if text else None
    except ValueError as exc:
        raise InvalidSchedule(f"{name}: {exc}", field=name, value=text) from exc


def _seconds(text: str) -> float:
    return parse_duration(text).total_seconds()


def _span(value: Any) -> str:
    """Return seconds as the form takes them; what else stands in a row, as it stands."""
    if not isinstance(value, int | float):
        return str(value or "")
    return f"{int(value)}s" if value == int(value) else f"{value}s"


def _priority(text: str) -> int:
    if text not in "0123456789":
        raise ValueError(f"{text[:40]!r} is not a number from 0, which goes first, to 9")
    return int(text)
