"""The console over HTTP: operators, clients of theirs that are logged in, and its routes."""

from __future__ import annotations

import itertools
import re
from functools import lru_cache
from html.parser import HTMLParser
from typing import Any

import httpx
from argon2 import PasswordHasher
from starlette.routing import Route

from tests.integration.door import Door
from worker.db import statement
from worker.gateway.console import app as console
from worker.gateway.console.access import STAMP, sessions, stamp_of
from worker.ledger import operators
from worker.live.asgi import INSECURE_COOKIE
from worker.live.sessions import csrf_token

PASSWORD = "correct horse battery"

_numbers = itertools.count(1)
_ADD = "INSERT INTO operators (name, role, password_hash) VALUES (%s, %s, %s)"


class Visitor(httpx.Client):
    """A browser without scripts: keeps cookies and follows nobody's redirects by itself."""

    cookie = INSECURE_COOKIE

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(base_url=url, timeout=30, trust_env=False)
        self.name = name

    @property
    def session_id(self) -> str:
        return str(self.cookies[self.cookie])

    @property
    def token(self) -> str:
        """The token of this session's forms; one begins where there is none."""
        if self.cookie not in self.cookies:
            self.get("/console/login")
        return csrf_token(self.session_id)

    def send_form(self, path: str, fields: dict[str, Any] | None = None, /, **more: Any) -> httpx.Response:
        """Send a form of this session."""
        return self.post(path, data={"csrf_token": self.token, **(fields or {}), **more})

    def act(self, path: str, fields: dict[str, Any] | None = None, /, **more: Any) -> str:
        """Send a form that does something, confirmed, which must be answered by going on; return what the next page says."""
        answer = self.send_form(path, {"confirmed": "yes", **(fields or {}), **more})
        assert answer.status_code == 303, answer.text
        return " ".join(flashes(self.get(answer.headers["location"]).text))

    def log_in(self, name: str, password: str = PASSWORD, **fields: str) -> httpx.Response:
        """Send the login form of a page that was just loaded."""
        self.name = name
        self.get("/console/login")
        return self.send_form("/console/login", name=name, password=password, **fields)


class Site:
    """A gateway whose console is visited."""

    def __init__(self, door: Door) -> None:
        self.door, self.url = door, door.url
        self._visitors: list[Visitor] = []

    def add(self, role: str, name: str = "") -> str:
        """Add an operator and return the name."""
        name = name or f"{role}{next(_numbers)}"
        with statement() as conn:
            conn.execute(_ADD, (name, role, _hash()))
        return name

    def visitor(self, role: str | None = None, name: str = "") -> Visitor:
        """Return a client of a new operator with a role, in a session as a login leaves it; of nobody without a role.

        The login form itself has tests of its own: it hashes a password each time, which is dear on purpose.
        """
        made = Visitor(self.url)
        self._visitors.append(made)
        if role is not None:
            made.name = self.add(role, name)
            with statement() as conn:
                stamp = stamp_of(operators.get(conn, made.name))
            session = sessions().open(made.name, {STAMP: stamp}, about="a test")
            made.cookies.set(made.cookie, session.id, domain="127.0.0.1")
        return made

    def stop(self) -> None:
        for visitor in self._visitors:
            visitor.close()
        self.door.stop()


@lru_cache(maxsize=1)
def _hash() -> str:
    """Return the hash of the password, made once: that is dear on purpose."""
    return PasswordHasher().hash(PASSWORD)


def routes(method: str) -> dict[str, Route]:
    """Return the routes of the console that take a method, by path, `{parameters}` and all."""
    return {f"{console.ROOT}{route.path}": route for route in console.routes() if method in (route.methods or ())}


def filled(path: str) -> str:
    """Return the path of a route with something for its parameters."""
    return re.sub(r"\{(\w+)(:\w+)?\}", "1", path)


def role_of(route: Route) -> str | None:
    """Return the role that a route takes; None for one that is open to all."""
    return getattr(route.endpoint, "role", None)


class _Reader(HTMLParser):
    """Reads a page: its elements with their attributes, and texts of one class."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.flashes: list[str] = []
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "p" and "flash" in (found.get("class") or "").split():
            self.flashes.append("")
            self._depth = 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self._depth = 0

    def handle_data(self, data: str) -> None:
        if self._depth:
            self.flashes[-1] += data


def read(page: str) -> _Reader:
    """Read a page."""
    reader = _Reader()
    reader.feed(page)
    return reader


def flashes(page: str) -> list[str]:
    """Return what a page says once."""
    return [" ".join(text.split()) for text in read(page).flashes]


def inline(page: str) -> list[str]:
    """Return what a page holds that its policy forbids: scripts and styles that stand in it, and foreign addresses."""
    found = []
    for tag, attributes in read(page).tags:
        if (tag == "script" and not attributes.get("src")) or tag in ("style", "base", "iframe", "object", "embed"):
            found.append(tag)
        found += [f"{tag} {name}" for name in attributes if name.startswith("on") or name == "style" or name.startswith("hx-on")]
        found += [f"{tag} {name}={value}" for name, value in attributes.items()
                  if name in ("href", "src", "action", "formaction") and not re.match(r"[/#?]|$", value or "")]  # fmt: skip
    return found
