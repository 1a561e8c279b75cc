"""Sessions of people, kept on the server: a cookie holds nothing but an id, of which the server knows only the digest."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from base64 import urlsafe_b64encode
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from secrets import token_urlsafe
from typing import Any, TypeVar

from worker.errors import InvalidLive, SessionConflict, SessionGone, StoreUnavailable
from worker.store import coordination, keys, script
from worker.store.aio import coordination as async_coordination
from worker.telemetry import OUTAGES

T = TypeVar("T")

#: Bytes of randomness in an id: 128 bits cannot be guessed (OWASP asks for 64).
_ID_BYTES = 16
#: What an id of ours looks like; anything else that a cookie holds is nobody's.
_ID = re.compile(r"[A-Za-z0-9_-]{22}")
#: Longest data of one session, in bytes of JSON: more belongs in a table.
MOST_BYTES = 65_536
#: Sessions one user may have; one more ends the oldest.
MOST_SESSIONS = 1000
#: Times a session that was rotated is followed to the one that took its place.
_MOST_HOPS = 20
#: What the token against forged requests is derived with.
_CSRF = b"holdfast csrf"

_open, _read, _write, _end, _note = (script(f"session_{name}") for name in ("open", "read", "write", "end", "note"))

#: What is to be asked of Redis next; it goes on with the answers.
Asking = Generator[list[tuple[Any, ...]], list[Any], T]


@dataclass(slots=True)
class Session:
    """One session as it was read. `data` is the caller's own, JSON; times are the server's."""

    id: str
    user: str | None
    data: dict[str, Any]
    version: int
    began: datetime
    seen: datetime
    #: The moment at which it ends whatever happens.
    ends: datetime
    about: str = ""

    @property
    def csrf_token(self) -> str:
        """The token that a form or a script sends along with this session's requests; nobody can make it without the id."""
        return csrf_token(self.id)


@dataclass(frozen=True, slots=True)
class Listed:
    """One session of a user, for a list: no id can be had from it, only the handle by which to end it."""

    handle: str
    began: datetime
    seen: datetime
    ends: datetime
    about: str


def csrf_token(session_id: str) -> str:
    """Return the token against forged requests that belongs to a session."""
    return urlsafe_b64encode(hmac.digest(session_id.encode(), _CSRF, "sha256")).decode().rstrip("=")


def is_csrf_token(session_id: str, given: str) -> bool:
    """Tell in constant time whether this is the session's token."""
    return hmac.compare_digest(csrf_token(session_id).encode(), given.encode(errors="replace"))


def digest_of(session_id: str) -> str:
    """Return what the server knows a session by: whoever reads Redis cannot log in with it."""
    return hashlib.sha256(session_id.encode()).hexdigest()


def is_id(text: str) -> bool:
    """Tell whether a text can be an id."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Sessions:
    """Sessions with an idle life that begins anew with each use, and an absolute one that does not.

        sessions = Sessions(idle=timedelta(minutes=30), absolute=timedelta(hours=12))
        session = sessions.open(user="ann", about="Firefox on Linux")
        session.data["theme"] = "dark"
        sessions.write(session)
        sessions.end(session.id)

    The idle life begins anew once a tenth of it is over, so that not every read writes. A write or rotation that another write
    has overtaken is refused with `SessionConflict`; read again and decide (the middleware in `live.asgi` merges by key). Every
    method raises `StoreUnavailable` while Redis is away: nobody is logged in then. Each has a twin for asyncio behind `.aio`.

    **Guarantee:** once `end`, `end_all` or `rotate` has returned, no request in flight, whatever it read before, brings that
    session or its successor back. A Redis that loses its memory logs everybody out; one that loses its last second, as after a
    crash with `appendfsync everysec`, may forget a logout of that second. Lives are by the server's clock: a jump of it ends
    sessions early or late by as much. A process that dies in the middle leaves a session that is whole, or ended.
    """

    idle: timedelta = timedelta(minutes=30)
    absolute: timedelta = timedelta(hours=12)

    def __post_init__(self) -> None:
        if not timedelta(seconds=1) <= self.idle <= self.absolute <= timedelta(days=366):
            raise InvalidLive(
                f"idle, absolute: {self.idle} and {self.absolute} are not lives from a second to a year, the first the shorter"
            )

    @property
    def aio(self) -> AsyncSessions:
        """The same for asyncio."""
        return AsyncSessions(self)

    def open(self, user: str | None = None, data: Mapping[str, Any] | None = None, *, about: str = "") -> Session:
        """Begin a session. Raises `InvalidLive` for data that is no JSON or longer than 64 KiB."""
        return _drive(self.opening(user, data, about=about))

    def read(self, session_id: str) -> Session | None:
        """Return a session and let it live on; None for one that was ended, is over, or never was."""
        return _drive(self.reading(session_id))

    def write(self, session: Session) -> None:
        """Keep a session's data. Raises `SessionConflict` when another has written it since, `SessionGone` when it was ended."""
        _drive(self.writing(session))

    def rotate(self, session: Session, user: str | None = None, *, about: str | None = None) -> Session:
        """Give a session a new id, at login, and whenever it may do more than before; the old id is ended.

        Who has planted the old id in somebody's browser gains nothing. It keeps its data and its absolute life; a login, which
        names a `user`, begins that anew. Raises `SessionConflict` when another has written it since, and `SessionGone` when it
        was ended: then nobody is logged in.
        """
        return _drive(self.rotating(session, user, about=about))

    def end(self, session_id: str) -> bool:
        """End a session, and what took its place if it was rotated meanwhile; tell whether it lived."""
        return _drive(self.ending(digest_of(session_id)))

    def was_rotated(self, session_id: str) -> bool:
        """Tell whether a session that is gone was given a new id, which its owner's browser may not have had yet."""
        return _drive(self.asking_rotated(session_id))

    def of_user(self, user: str) -> list[Listed]:
        """Return a user's sessions, the youngest first."""
        return _drive(self.listing(user))

    def end_one(self, user: str, handle: str) -> bool:
        """End the session of a user that the list gave this handle; tell whether there was one."""
        return _drive(self.ending_one(user, handle))

    def end_all(self, user: str, *, but: str | None = None) -> int:
        """End all sessions of a user, but perhaps the one with this id; return how many."""
        return _drive(self.ending_all(user, but=but))

    # ---- the steps, once for threads and tasks

    def opening(self, user: str | None, data: Mapping[str, Any] | None, *, about: str = "") -> Asking[Session]:
        """As `open`."""
        kept = dict(data or {})
        return (yield from self._beginning(token_urlsafe(_ID_BYTES), _checked(user), kept, _encoded(kept), about[:200], 0))

    def _beginning(
        self, session_id: str, user: str | None, data: dict[str, Any], text: str, about: str, ends_ms: int
    ) -> Asking[Session]:
        """Begin a session under this id; it ends at that moment at the latest, or, with 0, after the absolute life."""
        digest, surplus = digest_of(session_id), []
        if user is not None:
            # On the list first: one that were not on it could not be ended with the others.
            (surplus,) = yield [_note.command([keys.sessions(user)], [digest, _ms(self.absolute), MOST_SESSIONS])]
        lives = (_ms(self.idle), ends_ms, _ms(self.absolute))
        (answer,) = yield [_open.command([keys.session(digest)], [user or "", text, *lives, about])]
        if answer is None:
            raise SessionGone
        for other in surplus:
            yield from self.ending(other.decode())
            yield [("ZREM", keys.sessions(user or ""), other)]
        began, ends = (_moment(ms) for ms in answer)
        return Session(session_id, user, data, 1, began, began, ends, about)

    def reading(self, session_id: str) -> Asking[Session | None]:
        """As `read`."""
        if not is_id(session_id):
            return None
        (found,) = yield [_read.command([keys.session(digest_of(session_id))], [1])]
        if found is None:
            return None
        user, data, version, *moments, about = (value.decode() for value in found)
        began, seen, ends = map(_moment, moments)
        return Session(session_id, user or None, json.loads(data), int(version), began, seen, ends, about)

    def writing(self, session: Session) -> Asking[None]:
        """As `write`."""
        (answer,) = yield [_write.command([keys.session(digest_of(session.id))], [session.version, _encoded(session.data)])]
        if answer == 0:
            raise SessionGone
        if answer < 0:
            raise SessionConflict(version=-answer)
        session.version = answer

    def rotating(self, session: Session, user: str | None, *, about: str | None) -> Asking[Session]:
        """As `rotate`."""
        ends_ms = 0 if user is not None else round(session.ends.timestamp() * 1000)
        who, what = _checked(user) if user is not None else session.user, session.about if about is None else about
        text, new_id = _encoded(session.data), token_urlsafe(_ID_BYTES)
        old, new = digest_of(session.id), digest_of(new_id)
        # The old one ends first, in one step with the mark that leads from it to the new one: a logout that comes after follows
        # it, one that came before is seen here. Who dies in between has logged somebody out, not in.
        (answer,) = yield [_end.command([keys.session(old)], [new, 0, session.version])]
        if answer[0] < 0:
            raise SessionConflict(version=-answer[0])
        if not answer[0]:
            raise SessionGone
        return (yield from self._beginning(new_id, who, session.data, text, what[:200], ends_ms))

    def ending(self, digest: str) -> Asking[bool]:
        """As `end`, by the digest."""
        lived = False
        for hop in range(_MOST_HOPS):
            # One that took another's place may be about to begin: the mark is there before it. An id that nobody knows leaves
            # none, or a stranger could fill the server with them.
            (answer,) = yield [_end.command([keys.session(digest)], ["", _ms(self.absolute) if hop else 0, ""])]
            lived, digest = lived or bool(answer[0]), answer[1].decode()
            if not digest:
                break
        return lived

    def asking_rotated(self, session_id: str) -> Asking[bool]:
        """As `was_rotated`."""
        (to,) = yield [("HGET", keys.session(digest_of(session_id)), "to")]
        return bool(to)

    def listing(self, user: str) -> Asking[list[Listed]]:
        """As `of_user`."""
        (digests,) = yield [("ZREVRANGE", keys.sessions(user), 0, -1)]
        if not digests:
            return []
        answers = yield [_read.command([keys.session(digest.decode())], [0]) for digest in digests]
        found = []
        for digest, answer in zip(digests, answers, strict=True):
            if answer is not None and answer[0].decode() == user:
                began, seen, ends = (_moment(value) for value in answer[3:6])
                found.append(Listed(digest.decode(), began, seen, ends, answer[6].decode()))
        return sorted(found, key=lambda one: one.began, reverse=True)

    def ending_one(self, user: str, handle: str) -> Asking[bool]:
        """As `end_one`."""
        (place,) = yield [("ZSCORE", keys.sessions(user), handle)]
        return False if place is None else (yield from self.ending(handle))

    def ending_all(self, user: str, *, but: str | None) -> Asking[int]:
        """As `end_all`."""
        kept = digest_of(but) if but is not None else None
        (digests,) = yield [("ZREVRANGE", keys.sessions(user), 0, -1)]
        ended = 0
        for digest in (found.decode() for found in digests):
            if digest != kept:
                ended += yield from self.ending(digest)
        return ended


@dataclass(frozen=True, slots=True)
class AsyncSessions:
    """`Sessions` for asyncio: the same methods and errors.

        session = await sessions.aio.read(session_id)

    **Guarantee:** that of `Sessions`. A task that is cancelled in the middle leaves what a process that dies would.
    """

    of: Sessions

    async def open(self, user: str | None = None, data: Mapping[str, Any] | None = None, *, about: str = "") -> Session:
        """As `Sessions.open`."""
        return await _drive_async(self.of.opening(user, data, about=about))

    async def read(self, session_id: str) -> Session | None:
        """As `Sessions.read`."""
        return await _drive_async(self.of.reading(session_id))

    async def write(self, session: Session) -> None:
        """As `Sessions.write`."""
        await _drive_async(self.of.writing(session))

    async def rotate(self, session: Session, user: str | None = None, *, about: str | None = None) -> Session:
        """As `Sessions.rotate`."""
        return await _drive_async(self.of.rotating(session, user, about=about))

    async def end(self, session_id: str) -> bool:
        """As `Sessions.end`."""
        return await _drive_async(self.of.ending(digest_of(session_id)))

    async def was_rotated(self, session_id: str) -> bool:
        """As `Sessions.was_rotated`."""
        return await _drive_async(self.of.asking_rotated(session_id))

    async def of_user(self, user: str) -> list[Listed]:
        """As `Sessions.of_user`."""
        return await _drive_async(self.of.listing(user))

    async def end_one(self, user: str, handle: str) -> bool:
        """As `Sessions.end_one`."""
        return await _drive_async(self.of.ending_one(user, handle))

    async def end_all(self, user: str, *, but: str | None = None) -> int:
        """As `Sessions.end_all`."""
        return await _drive_async(self.of.ending_all(user, but=but))


def _drive(steps: Asking[T]) -> T:
    try:
        commands = next(steps)
        while True:
            commands = steps.send(coordination().ask(commands))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    except StoreUnavailable:
        OUTAGES.labels("session", "closed").inc()
        raise


async def _drive_async(steps: Asking[T]) -> T:
    try:
        commands = next(steps)
        while True:
            commands = steps.send(await async_coordination().ask(commands))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    except StoreUnavailable:
        OUTAGES.labels("session", "closed").inc()
        raise


def _checked(user: str | None) -> str | None:
    if user is not None and not 0 < len(user) <= 255:
        raise InvalidLive(f"user: {user[:40]!r} is not a name of 1 to 255 characters")
    return user


def _encoded(data: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise InvalidLive(f"data: it is not JSON: {exc}") from exc
    if len(text) > MOST_BYTES:
        raise InvalidLive(f"data: {len(text)} bytes are more than the {MOST_BYTES} of a session; keep it in a table")
    return text


def _ms(life: timedelta) -> int:
    return int(life.total_seconds() * 1000)


def _moment(ms: bytes | str | int) -> datetime:
    return datetime.fromtimestamp(int(ms) / 1000, UTC)
