"""An operator's own account: the sessions it has, ending one or all, and the colours it wants."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from worker.errors import InvalidOperator
from worker.gateway.console.access import STAMP, back, done, form, refused, session_of, sessions, stamp_of, viewer
from worker.gateway.console.login import wait_after
from worker.gateway.console.pages import page
from worker.ledger import operators, trail
from worker.ledger.operators import Operator
from worker.live.sessions import digest_of

_THEMES = ("auto", "light", "dark")


@viewer
def show(request: Request, who: Operator) -> Response:
    """List the sessions of the operator who asks."""
    return page(request, "account.html", sessions=sessions().of_user(who.name), this=_this(request))


@viewer
def end(request: Request, who: Operator) -> Response:
    """End one of them."""
    handle = form(request).get("handle", "")
    with trail.recording(who.name, "session.end", who.name):
        ended = sessions().end_one(who.name, handle)
    return done(request, "The session is over.") if ended else refused(request, "There is no such session any more.")


@viewer
def end_others(request: Request, who: Operator) -> Response:
    """End all of them but this one."""
    session = session_of(request).session
    with trail.recording(who.name, "session.end_others", who.name):
        count = sessions().end_all(who.name, but=session.id if session else None)
    return done(request, f"{count} other {'session is' if count == 1 else 'sessions are'} over.")


@viewer
def change_password(request: Request, who: Operator) -> Response:
    """Set another password, for who knows the one of now; the other sessions end."""
    if wait_s := wait_after(request, who.name):
        return refused(request, f"Too many tries. Come again in {wait_s} s.")
    with trail.recording(who.name, "operator.password", who.name) as conn:
        if operators.verify(conn, who.name, form(request).get("password", "")) is None:
            raise InvalidOperator("the password of now is another one")
        operators.set_password(conn, who.name, form(request).get("new", ""))
        request.session[STAMP] = stamp_of(operators.get(conn, who.name))
    session = session_of(request).session
    sessions().end_all(who.name, but=session.id if session else None)
    return done(request, "The password is changed.")


@viewer
def set_theme(request: Request, who: Operator) -> Response:
    """Keep the colours for this session; it is no act upon the system, and stands in no trail."""
    theme = form(request).get("theme", "")
    request.session["theme"] = theme if theme in _THEMES else "auto"
    return RedirectResponse(back(request), 303)


def _this(request: Request) -> str:
    session = session_of(request).session
    return digest_of(session.id) if session else ""


routes = [
    Route("/account", show, methods=["GET"]),
    Route("/account/sessions/end", end, methods=["POST"]),
    Route("/account/sessions/end-others", end_others, methods=["POST"]),
    Route("/account/password", change_password, methods=["POST"]),
    Route("/theme", set_theme, methods=["POST"]),
]
