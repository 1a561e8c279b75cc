"""The files of the console: style, scripts, and their licences, each under an address that changes with what it holds."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

#: A file whose address holds its digest never changes.
_FOR_EVER = "public, max-age=31536000, immutable"
_KINDS = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "txt": "text/plain"}


class File(NamedTuple):
    """One file."""

    body: bytes
    kind: str
    digest: str


@lru_cache(maxsize=1)
def found() -> dict[str, File]:
    """Return the files there are, by name."""
    held: dict[str, File] = {}
    for one in files(__package__).joinpath("static").iterdir():
        kind = _KINDS.get(one.name.rpartition(".")[2])
        if kind is not None:
            body = one.read_bytes()
            held[one.name] = File(body, f"{kind}; charset=utf-8", sha256(body).hexdigest()[:16])
    return held


def address(name: str) -> str:
    """Return the address of a file."""
    return f"/console/static/{found()[name].digest}/{name}"


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request for a file."""
    await _answer(Request(scope))(scope, receive, send)


def _answer(request: Request) -> Response:
    digest, _, name = request.scope["path"].rpartition("/static/")[2].partition("/")
    file = found().get(name)
    if file is None:
        return PlainTextResponse("There is no such file.\n", 404)
    if request.method not in ("GET", "HEAD"):
        return PlainTextResponse("A file can only be read.\n", 405, headers={"Allow": "GET, HEAD"})
    # An old page may ask a new release for what it no longer has: it gets what there is, for now.
    headers = {"ETag": f'"{file.digest}"', "Cache-Control": _FOR_EVER if digest == file.digest else "no-cache"}
    if f'"{file.digest}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.kind, headers=headers)
