"""Notes on a job: writing one, and taking one's own away; an admin takes away anybody's."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.errors import HoldfastError
from worker.gateway.console.access import done, form, operator, refused
from worker.gateway.console.job import address_of, id_of
from worker.ledger import notes, trail
from worker.ledger.operators import Operator
from worker.telemetry import OUTAGES


@operator
def add(request: Request, who: Operator) -> Response:
    """Write a note."""
    job_id = id_of(request)
    text = form(request).get("text", "").replace("\r\n", "\n").strip()
    with trail.recording(who.name, "note.add", job_id) as conn:
        notes.add(conn, job_id, who.name, text)
    try:
        notes.writers(job_id).leave(who.name)
    except HoldfastError:
        OUTAGES.labels("presence", "runs out").inc()
    return done(request, "Your note is there.", to=f"{address_of(job_id)}#notes")


@operator
def remove(request: Request, who: Operator) -> Response:
    """Take a note away."""
    job_id, given = id_of(request), form(request).get("note", "")
    to = f"{address_of(job_id)}#notes"
    if not given.isdecimal() or len(given) > 18:
        return refused(request, f"note: {given[:40]!r} is no number of a note", to=to)
    with trail.recording(who.name, "note.remove", job_id, note=int(given)) as conn:
        found = next((note for note in notes.listed(conn, job_id) if note["id"] == int(given)), None)
        if found is None:
            raise ValueError("There is no such note any more.")
        if found["author"] != who.name and not who.may("admin"):
            raise ValueError(f"This note is {found['author']}'s; an admin may take it away.")
        notes.remove(conn, job_id, int(given))
    return done(request, "The note is gone.", to=to)


routes = [
    Route("/jobs/{job_id}/notes", add, methods=["POST"]),
    Route("/jobs/{job_id}/notes/remove", remove, methods=["POST"]),
]
