"""The one text of a JSON value, whoever wrote it how: by its digest a repeated request is known at every door.

It is the text that Postgres makes of a `jsonb`, with numbers in one form, so that `holdfast.canonical` says the same in SQL.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

_quoted = json.JSONEncoder(ensure_ascii=False).encode


def digest(value: Any) -> bytes:
    """Return the SHA-256 of a JSON value's canonical text."""
    return hashlib.sha256(canonical(value).encode(errors="surrogatepass")).digest()


def canonical(value: Any) -> str:
    """Return the canonical text of a JSON value: keys by length and then by bytes, 1, 1.0 and 1e0 alike."""
    return "".join(_parts(value))


def _parts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from _object(value)
    elif isinstance(value, list | tuple):
        yield "["
        for place, item in enumerate(value):
            yield ", " if place else ""
            yield from _parts(item)
        yield "]"
    elif isinstance(value, float):
        yield _number(value)
    else:
        yield _quoted(value)


def _object(value: dict[str, Any]) -> Iterator[str]:
    names = {name: name.encode(errors="surrogatepass") for name in value}
    yield "{"
    for place, name in enumerate(sorted(value, key=lambda name: (len(names[name]), names[name]))):
        yield f"{', ' if place else ''}{_quoted(name)}: "
        yield from _parts(value[name])
    yield "}"


def _number(value: float) -> str:
    """Return a float without an exponent and without zeros at its end."""
    if not math.isfinite(value):
        return repr(value)  # no JSON, but Celery's may hold it; Postgres knows no such payload
    if value == 0:
        return "0"
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
