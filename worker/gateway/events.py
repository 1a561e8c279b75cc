"""Following a job as it goes on, by server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Request
from starlette.responses import Response, StreamingResponse

from worker.errors import HoldfastError
from worker.gateway.documents import is_final
from worker.gateway.feed import Event, events_after
from worker.gateway.parameters import JobId, Reader, Wait, seconds
from worker.gateway.state import Gateway, gateway_of
from worker.ledger.callers import Caller
from worker.settings import settings

router = APIRouter()

#: Seconds of silence after which a comment is sent, for those between here and there who close what is silent.
_ALIVE_S = 15.0
#: What one event is made of; `data` is a JSON object as text.
_EVENT = {
    "type": "object", "required": ["event", "data"], "additionalProperties": False,
    "properties": {"id": {"type": "string"}, "event": {"enum": ["state", "progress"]}, "data": {"type": "string"},
                   "retry": {"type": "integer"}},
}  # fmt: skip
_STREAM = {"text/event-stream": {"schema": _EVENT}}


@router.get(
    "/v1/jobs/{job_id:job}/events",
    operation_id="followJob",
    summary="Follow a job",
    response_class=StreamingResponse,
    responses={
        200: {"description": "Events `state` and `progress`, until the job has ended.", "content": _STREAM},
        204: {"description": "The job has ended and all of it was told."},
    },
)
async def follow(
    request: Request,
    caller: Reader,
    job_id: JobId,
    wait: Wait = None,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", pattern=r"^\d{1,18}$")] = None,
) -> Response:
    """Tell what happens to a job, from its beginning or after the event `Last-Event-ID`, until it has ended.

    The stream ends after `wait` all the same, a minute at most: who comes again with the last id goes on behind it, as browsers
    do by themselves, and shows its key anew.
    """
    gateway = gateway_of(request)
    row = await gateway.documents.of(job_id, caller)
    last_id = int(last_event_id or 0)
    if last_id and is_final(row) and not await events_after(row, last_id):
        return Response(status_code=204)  # this is how a browser's EventSource learns not to come again
    until = asyncio.get_running_loop().time() + (seconds("wait", wait) if wait else settings().gateway_wait_s)
    stream = _stream(gateway, caller, job_id, last_id, until)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _stream(gateway: Gateway, caller: Caller, job_id: str, last_id: int, until: float) -> AsyncIterator[bytes]:
    yield b"retry: 500\n\n"
    progress: Any = None
    loop = asyncio.get_running_loop()
    async with gateway.watch.on(job_id) as watched:
        while True:
            bell = watched.bell
            try:
                row = await gateway.documents.of(job_id, caller)
                events = await events_after(row, last_id)
            except HoldfastError:  # away for now; who follows comes again with the last id
                return
            for event in events:
                last_id = event.id or last_id
                yield _frame(event)
            if row["progress"] not in (None, progress) and not is_final(row):
                progress = row["progress"]
                yield _frame(Event(None, "progress", {"id": job_id, "progress": progress}))
            left = min(_ALIVE_S, until - loop.time())
            if is_final(row) or left <= 0 or gateway.watch.stopping:
                return
            if not await gateway.watch.wait(bell, left):
                yield b":\n\n"


def _frame(event: Event) -> bytes:
    lines = [f"id: {event.id}".encode()] if event.id is not None else []
    return b"\n".join([*lines, f"event: {event.name}".encode(), b"data: " + msgspec.json.encode(event.data), b"", b""])
