"""ASGI middleware: a session for each request that has one, the cookie, and the check against forged requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from copy import deepcopy
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from worker.errors import InvalidLive, SessionConflict, SessionGone, StoreUnavailable
from worker.live.sessions import Session, Sessions, is_csrf_token, is_id

T = TypeVar("T")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Browsers send a cookie so named over TLS only, to this host only, and take it from this host only.
COOKIE = "__Host-holdfast"
#: The cookie on loopback without TLS, where no browser takes the other.
INSECURE_COOKIE = "holdfast"
#: Where a request shows that it was meant: a script in this header, a form in this field.
HEADER, FIELD = b"x-csrf-token", "csrf_token"

#: Methods that change nothing, and so need no token.
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
#: Longest form that is read for its token, in bytes; a longer one sends the token in the header.
_MOST_FORM = 262_144
#: Times a write that another has overtaken is merged and tried anew.
_TRIES = 10

_AWAY = (503, "the session cannot be looked up at the moment; try again")
_FORGED = (403, "this request did not come with its session's token; reload the page and try again")
_NOT_LOOPBACK = (403, "this service runs without TLS and serves sessions on loopback only")


class Request(MutableMapping[str, Any]):
    """The session as one request sees it, under `scope["session"]`: a dictionary, kept when the response begins.

    What two requests write at the same time is merged by key, and of one key the later one stays. Nothing that a request writes
    brings a session back that was ended meanwhile.
    """

    def __init__(self, sessions: Sessions, session: Session | None, about: str, gone: str = "") -> None:
        self._sessions, self.session, self._about = sessions, session, about
        #: The id that the request came with, of a session that is gone.
        self._gone = gone
        self._data = session.data if session else {}
        self._read = deepcopy(self._data)
        #: Why the app could not be served with a session, if it could not.
        self.failure: StoreUnavailable | SessionGone | None = None
        #: The cookie to be set, None for none, empty to delete it.
        self.cookie: str | None = None

    @property
    def user(self) -> str | None:
        """Who is logged in; None for nobody."""
        return self.session.user if self.session else None

    async def csrf_token(self) -> str:
        """Return the token for a form of this page; for who has no session yet, one begins."""
        return (await self._begun()).csrf_token

    async def log_in(self, user: str) -> None:
        """Let this be the session of a user from now on, under a new id."""
        await self._change_id(user, self._about)

    async def rotate(self) -> None:
        """Change the id, whenever the session may do more than before."""
        await self._change_id(None, None)

    async def _change_id(self, user: str | None, about: str | None) -> None:
        session = await self._begun()
        session.data = self._data
        for _ in range(_TRIES):
            try:
                self._take(await self._asked(self._sessions.aio.rotate(session, user, about=about)))
                return
            except SessionConflict:
                found = await self._asked(self._sessions.aio.read(session.id))
                if found is None:
                    break
                session, found.data = found, self._merged(found.data)
        self.failure = SessionGone()
        raise self.failure

    async def log_out(self) -> None:
        """End the session, for every request that is on its way too."""
        if self.session is not None:
            await self._asked(self._sessions.aio.end(self.session.id))
        self.session, self._data, self._read, self.cookie, self._gone = None, {}, {}, "", ""

    async def keep(self) -> None:
        """Write what has changed; of a session that was ended meanwhile, nothing."""
        if self._data == self._read:
            return
        if self.session is None:
            await self._begun()
        session, tries = self.session, _TRIES
        assert session is not None
        session.data = self._data
        while True:
            try:
                await self._sessions.aio.write(session)
                break
            except SessionConflict:
                tries -= 1
                found = await self._sessions.aio.read(session.id) if tries else None
                if found is None:
                    return
                found.data = self._merged(found.data)
                session = self.session = found
            except SessionGone:
                return
        self._read = deepcopy(self._data)

    def _merged(self, newest: dict[str, Any]) -> dict[str, Any]:
        gone = self._read.keys() - self._data.keys()
        changed = {key: value for key, value in self._data.items() if key not in self._read or self._read[key] != value}
        return {**{key: value for key, value in newest.items() if key not in gone}, **changed}

    async def _begun(self) -> Session:
        if self.session is None:
            if self._gone and await self._was_rotated():
                # It was under way when somebody logged in: a session begun for it would take the place of theirs.
                self.failure = SessionGone()
                raise self.failure
            self._take(await self._asked(self._sessions.aio.open(about=self._about)))
        assert self.session is not None
        return self.session

    async def _was_rotated(self) -> bool:
        return await self._asked(self._sessions.aio.was_rotated(self._gone))

    async def _asked(self, asking: Awaitable[T]) -> T:
        try:
            return await asking
        except (StoreUnavailable, SessionGone) as exc:
            self.failure = exc
            raise

    def _take(self, session: Session) -> None:
        if session.data:  # rotated: what it holds was written with it
            self._data, self._read = session.data, deepcopy(session.data)
        self.session, self.cookie = session, session.id

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._data[key] = value

    def __delitem__(self, key: str) -> None:
        del self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)


class SessionMiddleware:
    """Gives each HTTP request its session, and refuses one that would change something and was not meant to.

        app = SessionMiddleware(app, Sessions())

    The app finds a `Request` in `scope["session"]` (`request.session` in Starlette). A request of another method than GET, HEAD,
    OPTIONS or TRACE must carry its session's token in the header `X-CSRF-Token` or the form field `csrf_token`; paths that begin
    with one of `exempt` need none, and are for callers that do not log in by cookie. `insecure` is for loopback without TLS: the
    cookie is then not `Secure`, and callers from anywhere else are refused.

    **Guarantee:** it fails closed: while Redis is away a request with a session is answered 503 and never reaches the app as
    somebody or as nobody; one whose session cannot be kept is answered 503 before a byte of its response went out. The token is
    derived from the id, so that an attacker who can set cookies gains nothing by setting two.
    """

    def __init__(self, app: App, sessions: Sessions, *, insecure: bool = False, exempt: Sequence[str] = ()) -> None:
        self.app, self.sessions, self.insecure, self.exempt = app, sessions, insecure, tuple(exempt)
        if any(not path.startswith("/") for path in self.exempt):
            raise InvalidLive(f"exempt: {list(exempt)!r} are not paths that begin with a slash")
        self.cookie = INSECURE_COOKIE if insecure else COOKIE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if self.insecure and (client := scope.get("client")) and not is_loopback(client[0]):  # none: a Unix socket
            await _refuse(scope, receive, send, _NOT_LOOPBACK)
            return
        try:
            session_id = self._cookie_of(scope)
            session = await self.sessions.aio.read(session_id) if session_id else None
        except StoreUnavailable:
            await _refuse(scope, receive, send, _AWAY)
            return
        # The cookie of a session that is gone is left alone: this request may be a late one, and the browser have a new one.
        about = _header(scope, b"user-agent").decode("latin-1")[:200]
        scope["session"] = request = Request(self.sessions, session, about, "" if session else session_id)
        if scope["type"] == "http":
            await self._serve(scope, receive, send, request)
        else:
            await self.app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request: Request) -> None:
        if scope["method"] not in _SAFE and not scope["path"].startswith(self.exempt):
            receive, token = await _token_of(scope, receive)
            if request.session is None or not is_csrf_token(request.session.id, token):
                await _refuse(scope, receive, send, _FORGED)
                return
        begun = refused = False

        async def send_kept(message: Message) -> None:
            nonlocal begun, refused
            if message["type"] == "http.response.start":
                begun = True
                # A framework may answer the app's failure itself, as one of its own.
                failure = request.failure if message["status"] >= 500 else await _kept(request)
                if failure is not None:
                    refused = True
                    await _refuse(scope, receive, send, _why(failure))
                else:
                    self._set_cookie(message, request)
            if not refused:
                await send(message)

        try:
            await self.app(scope, receive, send_kept)
        except (StoreUnavailable, SessionGone) as exc:  # of a login or logout
            if begun and not refused:
                raise
            if not begun:
                await _refuse(scope, receive, send, _why(exc))

    def _cookie_of(self, scope: Scope) -> str:
        # A browser sends cookies of one name in an order of its own: more than one is somebody's doing, and none is taken.
        found = set()
        for name, value in scope["headers"]:
            if name == b"cookie":
                for part in value.decode("latin-1").split(";"):
                    key, _, text = part.strip().partition("=")
                    if key == self.cookie:
                        found.add(text)
        return next(iter(found)) if len(found) == 1 and is_id(next(iter(found))) else ""

    def _set_cookie(self, message: Message, request: Request) -> None:
        if request.cookie is None:
            return
        life = f"Max-Age={int(self.sessions.absolute.total_seconds())}" if request.cookie else "Max-Age=0"
        secure = "" if self.insecure else "; Secure"
        line = f"{self.cookie}={request.cookie}; Path=/; {life}; HttpOnly{secure}; SameSite=Lax"
        # What answers somebody in person is not to be kept by a cache on the way.
        headers = [*message.get("headers", ()), (b"set-cookie", line.encode())]
        if not any(name.lower() == b"cache-control" for name, _ in headers):
            headers.append((b"cache-control", b"no-store"))
        message["headers"] = headers


async def _kept(request: Request) -> StoreUnavailable | SessionGone | None:
    try:
        await request.keep()
    except (StoreUnavailable, SessionGone) as exc:
        return exc
    return None


def _why(failure: StoreUnavailable | SessionGone) -> tuple[int, str]:
    return _AWAY if isinstance(failure, StoreUnavailable) else _FORGED


def _header(scope: Scope, wanted: bytes) -> bytes:
    return next((bytes(value) for name, value in scope["headers"] if name == wanted), b"")


def is_loopback(address: str) -> bool:
    """Tell whether an address is of this machine's own loopback."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


async def _token_of(scope: Scope, receive: Receive) -> tuple[Receive, str]:
    """Return the token a request came with, and what gives the app the body that was read for it."""
    if token := _header(scope, HEADER):
        return receive, token.decode("latin-1")
    if not _header(scope, b"content-type").startswith(b"application/x-www-form-urlencoded"):
        return receive, ""
    body, messages = b"", []
    while len(body) <= _MOST_FORM:
        message = await receive()
        messages.append(message)
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body"):
            break

    async def replay() -> Message:
        return messages.pop(0) if messages else await receive()

    if len(body) > _MOST_FORM:
        return replay, ""
    given = [value for name, value in parse_qsl(body.decode("latin-1")) if name == FIELD]
    return replay, given[0] if len(given) == 1 else ""


async def _refuse(scope: Scope, receive: Receive, send: Send, why: tuple[int, str]) -> None:
    status, text = why
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1013 if status == 503 else 1008, "reason": text[:120]})
        return
    body = f"{text}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()),
               (b"cache-control", b"no-store"), *([(b"retry-after", b"1")] if status == 503 else [])]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
