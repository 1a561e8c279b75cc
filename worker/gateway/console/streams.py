"""Streams: how far behind each group is and who reads, and what was set aside, to be put back or dropped."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.gateway.console.access import done, form, operator, viewer
from worker.gateway.console.pages import confirm, page
from worker.ledger import trail
from worker.ledger.operators import Operator
from worker.streams import DeadLetters, Stream, consumers_of, groups_of

#: The streams of Holdfast itself, as people call them.
_STREAMS = ("intake", "events")
#: Dead letters that a page shows, and that one form puts back.
_SHOWN, _MOST = 50, 10_000
#: Seconds after which a consumer that asks for nothing is called idle: one that works asks every second or so.
IDLE_S = 60.0


@viewer
def show(request: Request, who: Operator) -> Response:
    """Show each stream with its groups, their consumers, and its dead letters."""
    return page(request, "streams.html", streams=[_told(name) for name in _STREAMS], idle_s=IDLE_S, shown=_SHOWN)


@operator
def requeue(request: Request, who: Operator) -> Response:
    """Put one dead letter back into its stream, as a new entry at its end."""
    name, letter = _stream(request), form(request).get("id", "")
    with trail.recording(who.name, "stream.requeue", name, id=letter):
        new_id = _letters(name).requeue(letter)
    return done(request, f"{letter} is {new_id} now, at the end of {name}.")


@operator
def requeue_all(request: Request, who: Operator) -> Response:
    """Put all dead letters of a stream back, the oldest first."""
    name = _stream(request)
    letters = _letters(name)
    warning = f"There are {len(letters):,}. What is wrong with one is said again when it is read."
    title = f"Requeue all dead letters of {name}?"
    if (question := confirm(request, title, warning, do="Requeue all", danger=False)) is not None:
        return question
    chosen = [letter.id for letter in reversed(letters.list(limit=_MOST))]
    with trail.recording(who.name, "stream.requeue_all", name, count=len(chosen)):
        for letter_id in chosen:
            letters.requeue(letter_id)
    return done(request, f"{len(chosen):,} dead letters of {name} are put back.")


@operator
def drop(request: Request, who: Operator) -> Response:
    """Delete a dead letter."""
    name, letter = _stream(request), form(request).get("id", "")
    warning = "The entry is gone then: nothing else keeps it."
    if (question := confirm(request, f"Drop the dead letter {letter} of {name}?", warning, do="Drop")) is not None:
        return question
    with trail.recording(who.name, "stream.drop", name, id=letter):
        _letters(name).drop(letter)
    return done(request, f"{letter} is dropped.")


def _told(name: str) -> dict[str, Any]:
    stream, letters = Stream.called(name), _letters(name)
    groups = [{"state": group, "consumers": consumers_of(stream, group.group)} for group in groups_of(stream)]
    return {"name": name, "length": len(stream), "groups": groups, "dead": len(letters), "letters": letters.list(limit=_SHOWN)}


def _stream(request: Request) -> str:
    name = form(request).get("stream", "")
    if name not in _STREAMS:
        raise HTTPException(404, f"There is no stream {name!r}.")
    return name


def _letters(name: str) -> DeadLetters:
    return DeadLetters(Stream.called(name))


routes = [
    Route("/streams", show, methods=["GET"]),
    Route("/streams/requeue", requeue, methods=["POST"]),
    Route("/streams/requeue-all", requeue_all, methods=["POST"]),
    Route("/streams/drop", drop, methods=["POST"]),
]
