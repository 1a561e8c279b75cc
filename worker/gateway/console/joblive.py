"""A job's page as it goes on: what changed of the job, who else looks at it, and who writes a note, by server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from worker.db import repeatable
from worker.errors import HoldfastError, StoreUnavailable
from worker.gateway.console.access import operator, viewer
from worker.gateway.console.job import id_of, seen
from worker.gateway.console.live import frame
from worker.gateway.console.pages import text
from worker.gateway.state import Gateway, gateway_of
from worker.ledger import family, notes
from worker.ledger.operators import Operator
from worker.telemetry import OUTAGES

#: Seconds after which a stream ends, to be asked for anew: whoever may look no more is shown no more, and whoever looks stays
#: logged in.
_LIFE_S = 60.0
#: Seconds between two looks at a job and at who is there, where nothing rings before.
_LOOK_S = 1.0
#: Seconds of silence after which a comment is sent, for those between here and there who close what is silent.
_ALIVE_S = 15.0
#: The parts of the page that are sent when they have changed, each with its template.
_PARTS = {"status": "job_status.html", "acts": "job_acts.html", "timeline": "job_timeline.html", "notes": "job_notes.html"}


@viewer
async def follow(request: Request, who: Operator) -> Response:
    """Send the parts of a job's page as they change."""
    stream = _stream(request, gateway_of(request), id_of(request), who)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@operator
def write(request: Request, who: Operator) -> Response:
    """Learn that somebody is writing a note; it is no act upon the system, and stands in no trail."""
    try:
        notes.writers(id_of(request)).beat(who.name)
    except StoreUnavailable:
        OUTAGES.labels("presence", "beat missed").inc()
    return Response(status_code=204)


async def _stream(request: Request, gateway: Gateway, job_id: str, who: Operator) -> AsyncIterator[bytes]:
    loop, device = asyncio.get_running_loop(), uuid4().hex
    until, silent_since, beat_at = loop.time() + _LIFE_S, loop.time(), 0.0
    sent: dict[str, str] = {}
    stood: Any = ...  # how it stands is None where there is no such job
    yield b"retry: 1000\n\n"
    try:
        async with gateway.watch.on(job_id) as watched:
            while loop.time() < until and not gateway.watch.stopping:
                bell, news = watched.bell, dict[str, str]()
                try:
                    stands = await _standing(job_id)
                    if stands != stood:
                        stood, news = stands, await run_in_threadpool(_parts, request, job_id, who)
                except HoldfastError:  # away for now, or gone: the page stands as it is, and asks again
                    return
                if loop.time() >= beat_at:
                    beat_at = loop.time() + notes.lookers(job_id).period_s
                    await run_in_threadpool(_beat, job_id, who, device)
                news["here"] = await run_in_threadpool(_here, request, job_id, who)
                changed = {name: part for name, part in news.items() if sent.get(name) != part}
                sent.update(changed)
                if changed or loop.time() - silent_since > _ALIVE_S:
                    silent_since = loop.time()
                    yield b"".join(frame(name, part or "\n") for name, part in changed.items()) or b":\n\n"
                await gateway.watch.wait(bell, _LOOK_S)
    except asyncio.CancelledError:
        loop.run_in_executor(None, _leave, job_id, who, device)  # the page was closed
        raise


async def _standing(job_id: str) -> Any:
    return await run_in_threadpool(repeatable, lambda conn: family.standing(conn, job_id))


def _parts(request: Request, job_id: str, who: Operator) -> dict[str, str]:
    known = repeatable(lambda conn: seen(conn, job_id, who))
    return {name: text(request, template, **known) for name, template in _PARTS.items()}


def _here(request: Request, job_id: str, who: Operator) -> str:
    try:
        lookers, writers = (list(place.online()) for place in (notes.lookers(job_id), notes.writers(job_id)))
    except StoreUnavailable:
        OUTAGES.labels("presence", "not told").inc()
        lookers, writers = [], []
    others, writing = ([name for name in names if name != who.name] for names in (lookers, writers))
    return text(request, "job_here.html", others=others, writing=writing)


def _beat(job_id: str, who: Operator, device: str) -> None:
    try:
        notes.lookers(job_id).beat(who.name, device)
    except StoreUnavailable:
        OUTAGES.labels("presence", "beat missed").inc()


def _leave(job_id: str, who: Operator, device: str) -> None:
    try:
        notes.lookers(job_id).leave(who.name, device)
    except HoldfastError:
        OUTAGES.labels("presence", "runs out").inc()


routes = [
    Route("/jobs/{job_id}/live", follow, methods=["GET"]),
    Route("/jobs/{job_id}/writing", write, methods=["POST"]),
]
