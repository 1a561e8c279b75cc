"""Flower: where it is, behind the same login."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.gateway.console.access import viewer
from worker.gateway.console.pages import page
from worker.ledger.operators import Operator
from worker.settings import settings


@viewer
def show(request: Request, who: Operator) -> Response:
    """Lead to Flower, or say how to have it: a redirect from the login to another port is none that its policy allows."""
    return page(request, "flower.html", flower_url=settings().flower_url)


routes = [Route("/flower", show, methods=["GET"])]
