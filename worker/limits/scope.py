"""Templates that name the key of a limit out of what is known of a call: `{host}`, `{kwargs[host]}`, `{task}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from worker.errors import InvalidLimit

#: What a template may name; `user`, `host` and `model` are the keyword arguments of these names.
FIELDS = ("task", "queue", "caller", "user", "host", "model", "args", "kwargs")
_SHORT = ("user", "host", "model")
_PIECE = re.compile(r"\{([a-z]+)(?:\[([^\[\]{}]+)\])?\}")
#: Characters of a template: it stands in an index, with each waiting job.
_LONGEST = 255
_INDEX = re.compile(r"[0-9]{1,4}")


class Scope:
    """A template, read once."""

    def __init__(self, template: str) -> None:
        """Read a template. Raises `InvalidLimit` that names the field that is none."""
        self.template = template
        if not isinstance(template, str) or not template or any(sign.isspace() for sign in template):
            raise InvalidLimit(f"scope: {template!r} is not a text without spaces, such as {{host}} or {{kwargs[host]}}")
        if any(sign in _PIECE.sub("", template) for sign in "{}"):
            raise InvalidLimit(f"scope: {template!r} has a brace that opens or closes nothing; write {{host}} or {{args[0]}}")
        if len(template) > _LONGEST:
            raise InvalidLimit(f"scope: {template!r} has more than {_LONGEST} characters")
        for field, index in _PIECE.findall(template):
            if field not in FIELDS:
                raise InvalidLimit(f"scope: {template!r} names {field!r}, which is none of {', '.join(FIELDS)}", field=field)
            if (field in ("args", "kwargs")) != bool(index) or (field == "args" and not _INDEX.fullmatch(index)):
                raise InvalidLimit(f"scope: {template!r}: write args[0], kwargs[name], the others without brackets", field=field)

    def key(self, known: Mapping[str, Any]) -> str | None:
        """Return the key for what is known of a call, or None when it lacks something the template names."""
        try:
            return _PIECE.sub(lambda found: _text(_look_up(known, found[1], found[2])), self.template)
        except LookupError:
            return None

    def __repr__(self) -> str:
        return f"Scope({self.template!r})"


@lru_cache(maxsize=1024)
def scope(template: str) -> Scope:
    """Return the scope of a template, read once."""
    return Scope(template)


def _look_up(known: Mapping[str, Any], field: str, index: str | None) -> Any:
    if field in _SHORT:
        return known["kwargs"][field]
    if field == "args":
        return known["args"][int(index or 0)]
    return known["kwargs"][index] if field == "kwargs" else known[field]


def _text(value: Any) -> str:
    if value is None or isinstance(value, list | dict):
        raise LookupError  # nothing that tells one key from another
    return str(value)
