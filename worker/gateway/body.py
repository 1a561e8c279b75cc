"""Bodies of requests: bounded before they are read, and read as strict JSON (RFC 7493), or refused by name."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from worker.gateway.problems import Problem

#: Deepest nesting of a body's arrays and objects.
DEEPEST = 64
#: Most digits of a whole number; twice what 64 bits take.
_DIGITS = 40
#: Bytes of a body from which on it is parsed in a thread, so that the others need not wait for it.
_LARGE = 65_536
_JSON = re.compile(r"application/(?:[a-z0-9.+-]+\+)?json\s*(?:;\s*charset=\"?utf-8\"?\s*)?", re.IGNORECASE)


async def read_json(request: Request, most: int) -> Any:
    """Return a body of at most so many bytes as the JSON value it is. Raises `Problem`: 400, 413 or 415."""
    headers = request.headers
    if not _JSON.fullmatch(headers.get("content-type", "")):
        raise Problem(415, "The body must be JSON: say Content-Type: application/json.", field="Content-Type")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "The body must not be compressed.", field="Content-Encoding")
    body = await read_body(request, most)
    return await asyncio.to_thread(parse, body) if len(body) > _LARGE else parse(body)


async def read_body(request: Request, most: int) -> bytes:
    """Return a body, or stop reading at so many bytes. Raises `Problem` 413."""
    said = request.headers.get("content-length", "")
    if said.isdecimal() and (len(said) > 15 or int(said) > most):
        raise _too_large(most)
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > most:
                raise _too_large(most)
            pieces.append(piece)
    except ClientDisconnect:
        raise Problem(400, "The connection was closed before the body had come.") from None
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(most: int) -> Problem:
    # The rest is not read, so the connection cannot be used for another request.
    return Problem(413, f"The body is larger than {most:,} bytes.", code="too_large", headers={"Connection": "close"})


def parse(body: bytes) -> Any:
    """Return the JSON value. Raises `Problem` 400 that says what about it is wrong.

    Stricter than Python's: no NaN, no numbers beyond what a double or 40 digits hold, no name twice in an object, no half of a
    surrogate pair, nothing nested deeper than `DEEPEST`. Each of these means different things to different programs.
    """
    try:
        text = body.decode()
        value = _DECODER.decode(text)
        if "\\u" in text:  # Only an escape can make half of a surrogate pair.
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise _bad("it is not UTF-8, or holds half of a surrogate pair") from None
    except RecursionError:
        raise _bad(f"it is nested deeper than {DEEPEST}") from None
    except ValueError as exc:
        raise _bad(str(exc)) from None
    if body.count(b"[") + body.count(b"{") > DEEPEST:
        _check_depth(value)
    return value


def _bad(why: str) -> Problem:
    return Problem(400, f"The body cannot be read as JSON: {why}.", code="bad_json")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise _bad(f"it is nested deeper than {DEEPEST}")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [one for one in value.values() if isinstance(one, dict | list)]
    return [one for one in value if isinstance(one, dict | list)] if isinstance(value, list) else []


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice[:60]!r} stands twice in one object")
    return made


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number has more than {_DIGITS} digits")
    return int(digits)


def _float(text: str) -> float:
    number = float(text) if len(text) <= 400 else math.inf
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} does not fit a double")
    return number


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, parse_float=_float, parse_constant=_constant)
