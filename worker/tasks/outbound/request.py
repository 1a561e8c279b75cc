"""What a call may ask for: its arguments checked, and what becomes of it at a redirect."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from worker.errors import HttpRedirectError, InvalidRequest

#: Seconds: the longest a call may be given.
MAX_TIMEOUT_S = 3600.0
#: Characters: longer addresses are refused by most servers.
_MAX_URL = 8192

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
#: A name, an IPv4 address in any form, or an IPv6 address.
_HOST = re.compile(rb"[a-z0-9._-]{1,253}|[0-9a-f:.]+")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
#: CONNECT makes a tunnel, TRACE echoes secrets; neither is a call.
_NO_METHODS = ("CONNECT", "TRACE")
#: What frames a message is set here, from the call itself: two opinions about a body's length are a way to smuggle a second call.
_OUR_HEADERS = frozenset(
    ("host", "content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "te", "trailer", "expect",
     "accept-encoding", "proxy-authorization", "proxy-connection")
)  # fmt: skip
#: What goes along to another origin. All else may be a secret, under whatever name: `X-Api-Key` as well as `Authorization`.
_FOR_EVERYONE = frozenset(("accept", "accept-language", "content-type", "user-agent"))


@dataclass(frozen=True, slots=True)
class Request:
    """A call that is sound in itself. Header names are in lower case."""

    url: httpx.URL
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    timeout_s: float = 30.0
    #: The statuses that are good; none for 200 to 299.
    expect: frozenset[int] = frozenset()

    def with_key(self, key: str) -> Request:
        """Return this call with an `Idempotency-Key`, unless it has one."""
        return replace(self, headers={"idempotency-key": key, **self.headers})

    def expects(self, status: int) -> bool:
        """Tell whether this status is good."""
        return status in self.expect if self.expect else 200 <= status <= 299


def prepare(
    url: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: Any = None,
    timeout_s: float = 30.0,
    expect: Sequence[int] | None = None,
) -> Request:
    """Check the arguments of a call and return it. Raises `InvalidRequest` that names the argument."""
    content, kind = _content(body)
    checked = _headers(headers)
    if kind:
        checked.setdefault("content-type", kind)
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise InvalidRequest(f"timeout_s {timeout_s!r}: must be a number of seconds above 0 and up to {MAX_TIMEOUT_S:g}")
    return Request(_url(url), _method(method), checked, content, float(timeout_s), _statuses(expect))


def _url(text: Any) -> httpx.URL:
    if not isinstance(text, str) or len(text) > _MAX_URL:
        raise InvalidRequest(f"url: must be a text of at most {_MAX_URL} characters")
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError, TypeError) as exc:
        raise InvalidRequest(f"url: {exc}") from exc
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidRequest("url: must begin with http:// or https:// and a host")
    if not _HOST.fullmatch(url.raw_host):
        raise InvalidRequest("url: the host is neither a name nor an address")
    if url.userinfo:
        raise InvalidRequest("url: must not hold a user or password, which would be logged; use an Authorization header")
    if url.port is not None and not 0 < url.port < 65536:
        raise InvalidRequest(f"url: there is no port {url.port}")
    return url


def _method(method: Any) -> str:
    name = method.upper() if isinstance(method, str) else ""
    if not re.fullmatch(r"[A-Z][A-Z-]{0,31}", name) or name in _NO_METHODS:
        raise InvalidRequest(f"method {method!r}: must be a word such as GET or POST, but none of {', '.join(_NO_METHODS)}")
    return name


def _headers(headers: Any) -> dict[str, str]:
    if not isinstance(headers, Mapping | None):
        raise InvalidRequest("headers: must be an object of texts")
    checked: dict[str, str] = {}
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise InvalidRequest(f"headers: {name!r} is not a header name")
        if name.lower() in _OUR_HEADERS:
            raise InvalidRequest(f"headers: {name} is set by http.call itself")
        if name.lower() in checked:
            raise InvalidRequest(f"headers: {name} is given twice")
        # The value is not repeated: it may be a secret.
        if not isinstance(value, str) or _UNPRINTABLE.search(value) or not _encodable(value):
            raise InvalidRequest(f"headers: the value of {name} must be a text without line breaks and control characters")
        checked[name.lower()] = value.strip()
    return checked


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _content(body: Any) -> tuple[bytes | None, str]:
    """Return the bytes of a body and its kind: a text goes as it is, anything else as JSON."""
    if body is None:
        return None, ""
    try:
        if isinstance(body, str):
            return body.encode(), "text/plain; charset=utf-8"
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode(), "application/json"
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidRequest(f"body: must be a text or something that JSON can say: {exc}") from exc


def _statuses(expect: Any) -> frozenset[int]:
    if expect is None:
        return frozenset()
    sound = isinstance(expect, list | tuple | set | frozenset) and all(type(s) is int and 200 <= s <= 599 for s in expect)
    if not sound or not expect:
        raise InvalidRequest(f"expect {expect!r}: must be a list of statuses from 200 to 599, or nothing for 200 to 299")
    return frozenset(expect)


def redirected(request: Request, status: int, target: str) -> Request:
    """Return the call that a redirect asks for: RFC 9110, 15.4, as browsers do it."""
    try:
        url = _url(str(request.url.join(target)))
    except (InvalidRequest, httpx.InvalidURL, ValueError) as exc:
        raise HttpRedirectError(f"{origin(request.url)} redirects to where no call can go: {exc}") from exc
    if request.url.scheme == "https" and url.scheme != "https":
        raise HttpRedirectError(f"{origin(request.url)} redirects from https to http")
    method, content, headers = request.method, request.content, dict(request.headers)
    if (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST"):
        method, content = "GET", None
        headers = {name: value for name, value in headers.items() if not name.startswith("content-")}
    if origin(url) != origin(request.url):
        headers = {name: value for name, value in headers.items() if name in _FOR_EVERYONE}
    return replace(request, url=url, method=method, headers=headers, content=content)


def origin(url: httpx.URL) -> str:
    """Return scheme, host and port; the rest of an address often holds secrets and stays out of messages."""
    return f"{url.scheme}://{url.netloc.decode()}"
