"""What the console says when something goes wrong."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from worker import errors
from worker.gateway.console.pages import page

_NOT_FOUND = (
    errors.JobNotFound, errors.ScheduleNotFound, errors.LimitNotFound, errors.DeadLetterNotFound, errors.FlagNotFound,
    errors.CallerNotFound, errors.OperatorNotFound,
)  # fmt: skip
_TITLES = {400: "That cannot be read", 403: "Not with this role", 404: "There is nothing here", 405: "Not this way",
           413: "That is too much", 422: "That cannot be understood", 503: "Not at the moment"}  # fmt: skip


async def http_error(request: Request, exc: Exception) -> Response:
    """Answer what a route or a page refuses."""
    assert isinstance(exc, HTTPException)
    text = "There is no such page; perhaps it has moved." if exc.status_code == 404 and exc.detail == "Not Found" else exc.detail
    return await _page(request, exc.status_code, str(text))


async def known_error(request: Request, exc: Exception) -> Response:
    """Answer an error of ours."""
    if isinstance(exc, _NOT_FOUND):
        return await _page(request, 404, str(exc))
    if isinstance(exc, errors.SchemaOutdated):
        return await _page(request, 503, "The database is not migrated: run `holdfast db upgrade`.")
    if isinstance(exc, errors.LedgerUnavailable | errors.LoadFailed):
        return await _page(request, 503, "Postgres does not answer. The page can be loaded again in a moment.")
    if isinstance(exc, errors.StoreUnavailable):
        return await _page(request, 503, "Redis does not answer. The page can be loaded again in a moment.")
    return await _page(request, 422, str(exc))


async def unknown_error(request: Request, exc: Exception) -> Response:
    """Answer what is a fault of ours; the exception goes on, to the log."""
    number = request.scope.get("state", {}).get("request_id", "")
    return await _page(request, 500, f"The console failed; the gateway's log says why under the request {number}.")


async def _page(request: Request, status: int, text: str) -> Response:
    title = _TITLES.get(status, "This went wrong")
    return await run_in_threadpool(page, request, "error.html", status=status, title=title, text=text)
