"""What is kept of an answer: bounded, unpacked, as text."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import httpx

from worker.errors import HttpUnreachable

#: Headers of the answer that are kept, and characters of each.
_KEPT_HEADERS, _KEPT_VALUE = 64, 1024

#: Charsets that are believed. The rest is read as UTF-8: among Python's codecs are some that are no charsets, or slow on purpose.
_CHARSETS = re.compile(
    r"utf-?8|us-ascii|iso-?8859-\d{1,2}|windows-125\d|utf-?16(le|be)?|shift_jis|euc-(jp|kr)|gb(k|2312|18030)|big5|koi8-[ru]"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said.

    `body` is text, at most the limit long; `truncated` says that there was more, or that it was packed in a way not asked for.
    """

    status: int
    headers: dict[str, str]
    body: str
    truncated: bool
    elapsed_s: float


def kept(headers: httpx.Headers) -> dict[str, str]:
    """Return the headers by lower-case name, repeated ones joined; cookies are a secret between others."""
    kept = [(name, value[:_KEPT_VALUE]) for name, value in headers.items() if name not in ("set-cookie", "set-cookie2")]
    return dict(kept[:_KEPT_HEADERS])


def read_body(parts: Iterable[bytes], packing: str, limit: int) -> tuple[bytes, bool]:
    """Read a body up to the limit, unpacked; tell whether there was more. Raises `HttpUnreachable` for a broken one."""
    match packing.strip().lower():
        case "" | "identity":
            return _take(parts, limit)
        case "gzip" | "x-gzip":
            return _take(_unpacked(parts, limit), limit)
        case _:  # Not asked for, so not unpacked.
            return b"", True


def _take(parts: Iterable[bytes | None], limit: int) -> tuple[bytes, bool]:
    """Put a body together up to the limit; a part that is None stands for more that is not read."""
    content = bytearray()
    for part in parts:
        content += (part or b"")[: limit + 1 - len(content)]
        if part is None or len(content) > limit:
            return bytes(content[:limit]), True
    return bytes(content), False


def _unpacked(parts: Iterable[bytes], limit: int) -> Iterator[bytes | None]:
    """Unpack gzip in pieces no larger than the limit, so that a bomb costs no more memory than an honest body."""
    inflate, empty = zlib.decompressobj(16 + zlib.MAX_WBITS), True
    try:
        for part in parts:
            while part and not inflate.eof:
                empty = False
                yield inflate.decompress(part, limit + 1)
                part = inflate.unconsumed_tail
            if inflate.unused_data.strip(b"\0"):  # a second packet behind the first one
                yield None
    except zlib.error as exc:
        raise HttpUnreachable(f"the body is broken: {exc}") from exc
    if not empty and not inflate.eof:
        raise HttpUnreachable("the body is broken: it ends too early")


def text_of(content: bytes, kind: str) -> str:
    found = re.search(r"charset=\"?([\w.:-]+)", kind, re.IGNORECASE)
    charset = found[1].lower() if found and _CHARSETS.fullmatch(found[1].lower()) else "utf-8"
    try:
        return content.decode(charset, errors="replace")
    except LookupError:
        return content.decode(errors="replace")
