"""Operators: who may use the console, and as what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.db import statement
from worker.gateway.console.access import admin, back, done, form, sessions
from worker.gateway.console.pages import confirm, page
from worker.ledger import operators, trail
from worker.ledger.operators import Operator


@admin
def show(request: Request, who: Operator) -> Response:
    """List the operators."""
    with statement() as conn:
        return page(request, "operators.html", operators=operators.listed(conn), roles=operators.ROLES)


@admin
def add(request: Request, who: Operator) -> Response:
    """Add one, and show the password that was made up, once."""
    name, role = form(request).get("name", "").strip(), form(request).get("role", "")
    with trail.recording(who.name, "operator.add", name, role=role) as conn:
        password = operators.add(conn, name, role)
    return page(request, "password.html", name=name, password=password, back=back(request))


@admin
def set_role(request: Request, who: Operator) -> Response:
    """Give one another role."""
    name, role = _name(request), form(request).get("role", "")
    with _recording(who, "operator.role", name, role=role) as conn:
        operators.set_role(conn, name, role)
    return done(request, f"{name} is {role} from the next request on.")


@admin
def disable(request: Request, who: Operator) -> Response:
    """Let one in no more."""
    name = _name(request)
    warning = "From the next request on nothing of the console is open to this operator. The entries of the audit log stay."
    if (question := confirm(request, f"Disable {name}?", warning, do="Disable")) is not None:
        return question
    with _recording(who, "operator.disable", name) as conn:
        operators.set_disabled(conn, name, True)
    sessions().end_all(name)
    return done(request, f"{name} is disabled.")


@admin
def enable(request: Request, who: Operator) -> Response:
    """Let one in again."""
    name = _name(request)
    with trail.recording(who.name, "operator.enable", name) as conn:
        operators.set_disabled(conn, name, False)
    return done(request, f"{name} may log in again.")


@admin
def reset(request: Request, who: Operator) -> Response:
    """Give one another password, and show it, once."""
    name = _name(request)
    warning = "The password of now counts no more, and all sessions of this operator end. The new one is shown once."
    if (question := confirm(request, f"Reset the password of {name}?", warning, do="Reset the password")) is not None:
        return question
    with trail.recording(who.name, "operator.password", name) as conn:
        password = operators.set_password(conn, name)
    if name != who.name:
        sessions().end_all(name)
    return page(request, "password.html", name=name, password=password, back=back(request))


def _name(request: Request) -> str:
    return form(request).get("name", "")


@contextmanager
def _recording(who: Operator, action: str, name: str, **details: Any) -> Iterator[psycopg.Connection[Any]]:
    """Change who is an admin, one change at a time, so that there is one afterwards."""
    with trail.recording(who.name, action, name, **details) as conn:
        operators.one_at_a_time(conn)
        yield conn
        operators.keep_an_admin(conn)


routes = [
    Route("/operators", show, methods=["GET"]),
    Route("/operators/add", add, methods=["POST"]),
    Route("/operators/role", set_role, methods=["POST"]),
    Route("/operators/disable", disable, methods=["POST"]),
    Route("/operators/enable", enable, methods=["POST"]),
    Route("/operators/password", reset, methods=["POST"]),
]
