"""Whether the gateway lives, whether it can accept, and its figures."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from worker.gateway import shapes
from worker.gateway.auth import authenticate
from worker.gateway.parameters import Reader, json_response
from worker.gateway.problems import Problem
from worker.gateway.state import gateway_of

router = APIRouter()

Deep = Annotated[bool, Query(description="Whether to tell what `holdfast doctor` finds; takes a key with the scope admin.")]

_ALIVE = b'{"status":"alive"}'


@router.get("/healthz", operation_id="isAlive", summary="Ask whether it lives", response_model=shapes.Health)
async def healthz() -> Response:
    """Tell that the process lives; says nothing of the servers it needs."""
    return Response(_ALIVE, media_type="application/json")


@router.get("/readyz", operation_id="isReady", summary="Ask whether it can accept", response_model=shapes.Readiness)
async def readyz(request: Request, deep: Deep = False) -> Response:
    """Tell whether jobs can be accepted: for that Postgres must be there and migrated, but not Redis, of which it only tells.

    Asked `deep`, which takes a key with the scope admin, it also tells what `holdfast doctor` finds; that does not change the
    status, for a gateway that can accept shall go on to.
    """
    if deep:  # What is weak is not for everybody to read, nor are seconds of work for everybody to ask for.
        await authenticate(request, "admin")
    found = await gateway_of(request).probe.look()
    if found["postgres"] != "ready":
        raise Problem(503, f"Postgres is {found['postgres']}; Redis is {found['redis']}.", code="not_ready",
                      headers={"Retry-After": "1"})  # fmt: skip
    doctor = await gateway_of(request).doctor.look() if deep else {}
    return json_response({"status": "ready", **found, **doctor})


@router.get(
    "/metrics", operation_id="getMetrics", summary="Read the figures for Prometheus", response_class=Response,
    responses={200: {"description": "Figures of this process.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)  # fmt: skip
async def metrics(caller: Reader) -> Response:
    """Return the figures of this process for Prometheus, which brings a key with the scope read."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
