"""Flower behind the console's login: each request must bring along a session of the console that counts."""

from __future__ import annotations

from typing import Any

import tornado.web
from flower import urls
from flower.views import BaseHandler
from flower.views.monitor import Healthcheck
from tornado.routing import URLSpec

from worker.db import statement
from worker.errors import LedgerUnavailable, StoreUnavailable
from worker.gateway.console.access import operator_of, sessions
from worker.ledger import trail
from worker.live.asgi import COOKIE, INSECURE_COOKIE, is_loopback
from worker.live.sessions import is_id
from worker.settings import settings

#: Where Flower finds its `auth_provider`.
PROVIDER = f"{__name__}.Login"
#: Open to all, or not Flower's own: the sign of life, the login itself, and files without a word of the system.
_OPEN = ("LoginHandler", "StaticFileHandler", Healthcheck.__name__)
_READING = ("GET", "HEAD", "OPTIONS")


class Login(BaseHandler):  # type: ignore[misc]
    """Flower's login page: the console's."""

    def get(self) -> None:
        """Lead there, and back by way of the console."""
        self.redirect(f"{settings().console_url.rstrip('/')}/login?next=/console/flower")


class Guard:
    """Stands before one of Flower's handlers.

    Flower by itself would believe a cookie of its own for a month. So who asks is looked up with each request, as the console
    does: whoever was logged out or disabled there is out here as well. Reading takes the role viewer; whatever else, admin.
    """

    def get_current_user(self: Any) -> str | None:
        """Return the operator's name; None for nobody. Raises `HTTPError` 403 for a role that is too low, 503 without servers."""
        conf = settings()
        if not conf.console_tls and not is_loopback(self.request.remote_ip):
            return None
        session_id = self.get_cookie(COOKIE if conf.console_tls else INSECURE_COOKIE, "")
        try:
            who = operator_of(sessions().read(session_id)) if is_id(session_id) else None
            if who is not None and self.request.method not in _READING:
                if not who.may("admin"):
                    raise tornado.web.HTTPError(403, f"This takes the role admin; {who.name} is {who.role}.")
                with statement() as conn:
                    trail.write(conn, who.name, "flower", self.request.path, method=self.request.method)
        except (LedgerUnavailable, StoreUnavailable) as exc:
            raise tornado.web.HTTPError(503, "The login cannot be looked up at the moment.") from exc
        return who.name if who is not None else None

    def prepare(self: Any) -> Any:
        """Let nobody pass who is not logged in."""
        if self.current_user is None:
            if self.request.method != "GET" or "/api/" in self.request.path:
                raise tornado.web.HTTPError(403, "Log in to the console first.")
            self.redirect("/login")
            return None
        return super().prepare()  # type: ignore[misc]


def install() -> None:
    """Put the guard before all that Flower serves in this process."""
    for place, handler in enumerate(urls.handlers):
        found: type = handler.handler_class if isinstance(handler, URLSpec) else handler[1]
        if found.__name__ in _OPEN or issubclass(found, Guard):
            continue
        guarded = type(found.__name__, (Guard, found), {})
        if isinstance(handler, URLSpec):
            urls.handlers[place] = URLSpec(handler.regex.pattern, guarded, handler.kwargs, handler.name)
        else:
            urls.handlers[place] = (handler[0], guarded, *handler[2:])
