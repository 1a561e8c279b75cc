"""Workers: who is there, what each serves and how many jobs it runs."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.engine import fleet
from worker.gateway.console.access import viewer
from worker.gateway.console.live import EVERY_S, shared, stream
from worker.gateway.console.pages import page, text
from worker.ledger.operators import Operator


@viewer
def show(request: Request, who: Operator) -> Response:
    """List the workers, those that left within a day as well."""
    return page(request, "workers.html", **_known())


@viewer
async def live(request: Request, who: Operator) -> Response:
    """Tell what changes of them."""
    return stream(request, lambda: {"fleet": text(request, "workers/fleet.html", **_known())})


@shared(EVERY_S)
def _known() -> dict[str, Any]:
    return {"workers": fleet.listed()}


routes = [
    Route("/workers", show, methods=["GET"]),
    Route("/live/workers", live, methods=["GET"]),
]
