"""The application: its routes, and how it answers what goes wrong."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from worker.engine.application import Holdfast
from worker.errors import HoldfastError
from worker.gateway import acting, batch, events, health, looking, openapi, posting, views
from worker.gateway.console import app as console
from worker.gateway.layer import Layer
from worker.gateway.problems import Problem, answer, instance_of
from worker.gateway.state import Gateway

#: The modules with routes of the API.
_DOORS = (posting, batch, acting, events, looking, views, health)


def create_app(celery: Holdfast) -> tuple[Layer, Gateway]:
    """Return the gateway to an application whose tasks are imported, as an ASGI application, and what its requests share."""
    gateway = Gateway(celery)
    app = FastAPI(
        title="Holdfast", version="1", summary="Durable jobs over HTTP", docs_url=None, redoc_url=None,
        openapi_url="/openapi.json", lifespan=gateway.lifespan, redirect_slashes=False,
    )  # fmt: skip
    app.state.gateway = gateway
    for module in _DOORS:
        app.include_router(module.router)
    for kind in (Problem, HoldfastError):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _failed)
    app.mount(console.ROOT, console.Console(gateway))
    app.add_route(console.ROOT, _to_console, include_in_schema=False)
    openapi.describe(app)
    return Layer(app, {("POST", "/v1/jobs"): posting.post_job}), gateway


async def _to_console(request: Request) -> Response:
    """Send a browser on to the console's first page."""
    return RedirectResponse(f"{console.ROOT}/")


async def _http_error(request: Request, exc: Exception) -> Response:
    """Answer what the router refuses: no such path, no such method."""
    assert isinstance(exc, HTTPException)
    headers = dict(exc.headers or {})
    if exc.status_code == 405:
        headers["Allow"] = _allowed(request)
        detail = f"{request.method[:20]} is not for this path; it takes {headers['Allow']}."
    elif exc.status_code == 404:
        detail = "There is nothing at this path."
    else:
        detail = str(exc.detail)
    return Problem(exc.status_code, detail, headers=headers).response(instance_of(request))


def _allowed(request: Request) -> str:
    """Return the methods of all routes of a path; the router tells those of the first alone."""
    routes: Any = [route for module in _DOORS for route in module.router.routes]
    found = [route.methods for route in routes if route.path_regex.match(request.scope["path"])]
    return ", ".join(sorted(set().union(*found)))


async def _invalid(request: Request, exc: Exception) -> Response:
    """Answer parameters that are not what they should be, naming the first."""
    assert isinstance(exc, RequestValidationError)
    first: Any = exc.errors()[0]
    where = [str(part) for part in first["loc"]]
    return Problem(422, f"{where[-1]}: {first['msg']}.", field=where[-1]).response(instance_of(request))


async def _failed(request: Request, exc: Exception) -> Response:
    """Answer what is our own fault; the exception goes on, to the log."""
    return Problem(500, "The gateway failed; its log says why under this request's id.").response(instance_of(request))
