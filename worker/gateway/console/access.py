"""Who is the operator of a request, what its role may do, and what it sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import lru_cache
from inspect import iscoroutinefunction
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import ImmutableMultiDict
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response

from worker.db import repeatable
from worker.errors import HoldfastError, LedgerUnavailable, StoreUnavailable
from worker.ledger import operators
from worker.ledger.operators import Operator
from worker.live import Request as SessionRequest
from worker.live import Session, Sessions
from worker.settings import settings

Handler = Callable[[Request, Operator], Any]
Endpoint = Callable[[Request], Awaitable[Response]]
Form = ImmutableMultiDict[str, str]

#: An operator who does nothing for so long, with no page open that keeps itself current, is logged out; and after a day's work
#: whatever it does.
_IDLE, _ABSOLUTE = timedelta(minutes=30), timedelta(hours=12)
#: Longest form, in bytes, and most fields of it: a selection of jobs is sent by its filter, not by ids.
_LONGEST, _MOST_FIELDS = 262_144, 2000
#: What the session holds: the moment the operator's password was set as it was at login, and what to say on the next page.
STAMP, FLASH = "stamp", "flash"
#: Most words that wait for the next page, and the longest of them in characters.
_MOST_FLASHES, _LONGEST_FLASH = 5, 1000


@lru_cache(maxsize=1)
def sessions() -> Sessions:
    """Return the sessions of operators."""
    return Sessions(idle=_IDLE, absolute=_ABSOLUTE)


def session_of(request: Request) -> SessionRequest:
    """Return the session of a request."""
    found: SessionRequest = request.scope["session"]
    return found


# ---- roles


def viewer(handler: Handler) -> Endpoint:
    """Make an endpoint for every operator of `handler(request, operator)`, which runs in a thread unless it is a coroutine."""
    return _for("viewer", handler)


def operator(handler: Handler) -> Endpoint:
    """Make an endpoint for those who may act on jobs, queues, schedules, notes, the cache and streams."""
    return _for("operator", handler)


def admin(handler: Handler) -> Endpoint:
    """Make an endpoint for those who say who may do what: callers, limits, budgets, flags, operators."""
    return _for("admin", handler)


def _for(role: str, handler: Handler) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        if session_of(request).user is None:
            return _to_login(request)
        request.state.csrf = await session_of(request).csrf_token()
        if request.method == "POST":
            request.state.form = await read_form(request)
        if not iscoroutinefunction(handler):
            return await run_in_threadpool(_answer, request, role, handler)
        who = await run_in_threadpool(_admitted, request, role)
        if who is None:
            return _to_login(request)
        made: Response = await handler(request, who)
        return made

    endpoint.role = role  # type: ignore[attr-defined]  # for the test that asks every route for it
    return endpoint


def _answer(request: Request, role: str, handler: Handler) -> Response:
    who = _admitted(request, role)
    if who is None:
        return _to_login(request)
    if request.method != "POST":
        return _called(handler, request, who)
    try:
        return _called(handler, request, who)
    except (LedgerUnavailable, StoreUnavailable):
        raise
    except HoldfastError as exc:  # what was asked for cannot be done as asked: the page it came from says why
        return refused(request, str(exc))
    except ValueError as exc:
        if type(exc) is not ValueError:  # a decoder's, say: a fault of ours
            raise
        return refused(request, str(exc))


def _called(handler: Handler, request: Request, who: Operator) -> Response:
    made: Response = handler(request, who)
    return made


def _admitted(request: Request, role: str) -> Operator | None:
    """Return the operator; None for one whose session counts no more. Raises `HTTPException` 403 for a role that is too low."""
    who = operator_of(session_of(request).session)
    if who is None:
        return None
    request.state.operator = who
    if not who.may(role):
        raise HTTPException(403, f"This takes the role {role}; {who.name} is {who.role}.")
    return who


def operator_of(session: Session | None) -> Operator | None:
    """Return the operator whose session this is; None for nobody's, and for one that counts no more.

    Raises `LedgerUnavailable`: each request asks Postgres, so that a role, a password or a lock-out counts from the next one on.
    """
    name = session.user if session else None
    who = repeatable(lambda conn: operators.find(conn, name)) if name else None
    if session is None or who is None or who.disabled_at is not None or session.data.get(STAMP) != stamp_of(who):
        return None
    return who


def stamp_of(who: Operator) -> str:
    """Return what a session must hold to be this operator's since its password was last set."""
    return who.changed_at.isoformat()


def _to_login(request: Request) -> Response:
    if request.headers.get("hx-request"):  # htmx would put the login page into this one
        return Response(status_code=401, headers={"HX-Redirect": "/console/login"})
    if "text/event-stream" in request.headers.get("accept", ""):
        return Response(status_code=401)
    target = f"{request.scope['path']}?{request.url.query}" if request.url.query else request.scope["path"]
    ask = f"?next={quote(target, safe='')}" if request.method == "GET" and target != "/console/" else ""
    return RedirectResponse(f"/console/login{ask}", 303)


def client_of(request: Request) -> str:
    """Return the address a request comes from: behind a proxy, the one that the proxy saw."""
    if settings().console_tls and (forwarded := request.headers.getlist("x-forwarded-for")):
        return forwarded[-1].rpartition(",")[2].strip()[:64]
    return request.client.host if request.client else "local"


# ---- forms and answers


def form(request: Request) -> Form:
    """Return the fields that a POST sent."""
    found: Form = request.state.form
    return found


async def read_form(request: Request) -> Form:
    """Return the fields that a POST sends, within bounds. Raises `HTTPException` 400 and 413."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return ImmutableMultiDict([])
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > _LONGEST:
                raise HTTPException(413, f"The form is larger than {_LONGEST:,} bytes.")
        return ImmutableMultiDict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ClientDisconnect as exc:
        raise HTTPException(400, "The form did not come whole.") from exc
    except ValueError as exc:
        raise HTTPException(400, "The form cannot be read.") from exc


def local(target: str, default: str = "/console/") -> str:
    """Return a target if it is a path of the console, else the default: a link must not lead from a login to somewhere else."""
    parts = urlsplit(target) if target.isprintable() and "\\" not in target else None
    inside = parts and not parts.scheme and not parts.netloc and parts.path.startswith("/console/") and ".." not in parts.path
    return target if inside else default


def back(request: Request, default: str = "/console/") -> str:
    """Return the page that a form was sent from."""
    return local(form(request).get("next", ""), default)


def done(request: Request, text: str, *, to: str | None = None, kind: str = "good") -> Response:
    """Answer a form: go back to where it came from, or `to` there, and say this once."""
    flashes = [*request.session.get(FLASH, []), [kind, text[:_LONGEST_FLASH]]]
    request.session[FLASH] = flashes[-_MOST_FLASHES:]
    return RedirectResponse(to if to is not None else back(request), 303)


def refused(request: Request, text: str, *, to: str | None = None) -> Response:
    """Answer a form that asked for what cannot be done."""
    return done(request, text, to=to, kind="bad")
