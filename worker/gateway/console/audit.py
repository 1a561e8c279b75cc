"""The audit log: who did what to what."""

from __future__ import annotations

from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.db import statement
from worker.gateway.console.access import viewer
from worker.gateway.console.pages import page
from worker.ledger import trail
from worker.ledger.operators import Operator

#: Entries of a page.
_PAGE = 50
#: What narrows the list.
_FIELDS = ("actor", "action", "target")


@viewer
def show(request: Request, who: Operator) -> Response:
    """List entries, the newest first."""
    given = {name: value for name in _FIELDS if (value := request.query_params.get(name, "").strip()[:500])}
    with statement() as conn:
        rows = trail.listed(conn, **given, before=_before(request), limit=_PAGE + 1)
    older = f"?{urlencode({**given, 'before': rows[_PAGE - 1]['id']})}" if len(rows) > _PAGE else ""
    newer = f"?{urlencode(given)}" if "before" in request.query_params else ""
    filled = {name: given.get(name, "") for name in _FIELDS}
    return page(request, "audit.html", entries=rows[:_PAGE], given=filled, older=older, newer=newer)


def _before(request: Request) -> int | None:
    text = request.query_params.get("before")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise HTTPException(422, f"before: {text[:40]!r} is not the number of an entry.")
    return int(text)


routes = [Route("/audit", show, methods=["GET"])]
