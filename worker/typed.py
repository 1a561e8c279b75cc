"""JSON as people type it, at a prompt or into a form."""

from __future__ import annotations

import json
from typing import Any, NoReturn


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
    except RecursionError as exc:
        raise ValueError(f"{text[:80]!r} is nested too deep; write it like {form}") from exc
    except ValueError as exc:
        raise ValueError(f"{text!r} is not JSON ({exc}); write it like {form}") from exc


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
