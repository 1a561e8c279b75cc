"""Logging in and out."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from worker.db import statement
from worker.gateway.console.access import STAMP, client_of, local, operator_of, read_form, session_of, stamp_of
from worker.gateway.console.pages import page
from worker.ledger import operators, trail
from worker.ledger.operators import Operator
from worker.limits import Limiter, try_acquire_all
from worker.telemetry import log

logger = log(__name__)

#: Tries to log in under one name, and from one address. With Redis away there are no sessions either, so nothing is lost by
#: refusing. Who guesses at a name keeps its operator out as well, for as long as it goes on: that is the price.
_BY_NAME = Limiter("10/5 minutes", name="console-name")
_BY_ADDRESS = Limiter("30/5 minutes", name="console-address")
#: Two passwords are hashed at a time: each takes 64 MiB, and whoever floods this waits for itself alone.
_hashing = ThreadPoolExecutor(2, thread_name_prefix="holdfast-login")

#: The same for a wrong name, a wrong password and a disabled operator.
_WRONG = "The name or the password is wrong."


async def show(request: Request) -> Response:
    """Show the form."""
    target = local(request.query_params.get("next", ""))
    if await run_in_threadpool(operator_of, session_of(request).session) is not None:
        return RedirectResponse(target, 303)
    return await _form(request, target)


async def log_in(request: Request) -> Response:
    """Let an operator in whose name and password these are."""
    fields = await read_form(request)
    name, password, target = fields.get("name", "").strip()[:100], fields.get("password", ""), local(fields.get("next", ""))
    wait_s = await run_in_threadpool(wait_after, request, name)
    if wait_s:
        return await _form(request, target, name, f"Too many tries. Come again in {wait_s} s.", 429, wait_s)
    who = await asyncio.get_running_loop().run_in_executor(_hashing, _verified, name, password)
    if who is None:
        logger.warning("a login to the console was refused", name=name, client=client_of(request))
        return await _form(request, target, name, _WRONG, 403)
    await _begin(request, who, "password")
    return RedirectResponse(target, 303)


async def show_link(request: Request) -> Response:
    """Ask whether to log in by a link: a program that only looks at addresses must not use it up."""
    return await _form(request, "/console/", token=request.query_params.get("token", "")[:100])


async def log_in_by_link(request: Request) -> Response:
    """Let an operator in by a link that counts once."""
    fields = await read_form(request)
    if wait_s := await run_in_threadpool(wait_after, request):
        return await _form(request, "/console/", "", f"Too many tries. Come again in {wait_s} s.", 429, wait_s)
    who = await run_in_threadpool(_linked, fields.get("token", ""))
    if who is None:
        return await _form(request, "/console/", "", "This link was used, or is too old. Log in by name and password.", 403)
    await _begin(request, who, "link")
    return RedirectResponse("/console/", 303)


async def log_out(request: Request) -> Response:
    """End the session."""
    name = session_of(request).user
    if name is not None:
        await run_in_threadpool(_write, name, "logout", client_of(request))
    await session_of(request).log_out()
    return RedirectResponse("/console/login", 303)


async def _begin(request: Request, who: Operator, by: str) -> None:
    request.session[STAMP] = stamp_of(who)
    await session_of(request).log_in(who.name)
    await run_in_threadpool(_write, who.name, "login", client_of(request), by=by)


def _verified(name: str, password: str) -> Operator | None:
    with statement() as conn:
        return operators.verify(conn, name, password)


def _linked(token: str) -> Operator | None:
    with statement() as conn:
        return operators.use_link(conn, token)


def _write(name: str, action: str, client: str, **details: Any) -> None:
    with statement() as conn:
        trail.write(conn, name, action, name, address=client, **details)


def wait_after(request: Request, name: str | None = None) -> int:
    """Count a try, under a name if there is one; return the seconds to wait before the next, 0 when this one may go on."""
    charges = [_BY_ADDRESS.on(client_of(request)), *([_BY_NAME.on(name)] if name is not None else [])]
    decision = try_acquire_all(charges)
    return 0 if decision else max(1, round(decision.retry_after_s))


async def _form(
    request: Request, target: str, name: str = "", error: str = "", status: int = 200, wait_s: int = 0, token: str | None = None
) -> Response:
    request.state.csrf = await session_of(request).csrf_token()
    made = await run_in_threadpool(
        page, request, "login.html", status=status, target=target, name=name, error=error, token=token
    )  # fmt: skip
    if wait_s:
        made.headers["Retry-After"] = str(wait_s)
    return made


routes = [
    Route("/login", show, methods=["GET"]),
    Route("/login", log_in, methods=["POST"]),
    Route("/login/once", show_link, methods=["GET"]),
    Route("/login/once", log_in_by_link, methods=["POST"]),
    Route("/logout", log_out, methods=["POST"]),
]
