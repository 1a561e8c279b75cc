"""One job: how it stands and what it was given, what became of each attempt, what it belongs to, and acting on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import psycopg
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.db import repeatable
from worker.engine.acts import ACTS, Act
from worker.errors import JobNotFound
from worker.gateway.console.access import Endpoint, done, operator, viewer
from worker.gateway.console.jobs import progress_of, took
from worker.gateway.console.pages import confirm, page
from worker.gateway.state import gateway_of
from worker.ledger import bulk, family, manage, notes, trail
from worker.ledger.operators import Operator
from worker.states import FINAL_STATES

#: Longest text of arguments, a result or a traceback that a page shows, in characters.
LONGEST = 20_000

#: What is said before an act, and the word on its button.
_ASKED = {
    "cancel": ("Cancel", "It will not run. If it runs already it is asked to stop, and its task decides when."),
    "retry": ("Retry now", "It runs now instead of at its time."),
    "replay": ("Replay", "It runs again under its id; effects it has recorded are not repeated."),
    "discard": ("Discard", "It ends as one that failed for good: error callbacks run, and a chain stops here."),
}


@viewer
def show(request: Request, who: Operator) -> Response:
    """Show a job."""
    return page(request, "job.html", **repeatable(lambda conn: seen(conn, id_of(request), who)))


def seen(conn: psycopg.Connection[Any], job_id: str, who: Operator) -> dict[str, Any]:
    """Return what a page about a job, or a part of it, is made of. Raises `JobNotFound`."""
    found = manage.show(conn, job_id)
    root = found["root_id"] or found["id"]
    members = family.members(conn, root)
    return {
        "job": found, "href": address_of(job_id), "call": call_of(found), "took": took(found),
        "acts": [act for act in ACTS.values() if makes_sense(act, found)], "words": _ASKED,
        "timeline": timeline(found), "members": members if len(members) > 1 else [], "most": family.MOST,
        "chord": family.chord(conn, found["group_id"]) if found["group_id"] else None,
        "notes": notes.listed(conn, job_id), "may_remove": lambda note: note["author"] == who.name or who.may("admin"),
        "longest_note": notes.LONGEST, "is_bulk": found["task"] == bulk.TASK, "cut": cut, "head": head,
        "progress": progress_of(found),
        "is_final": found["state"] in FINAL_STATES,
    }  # fmt: skip


def makes_sense(act: Act, job: Mapping[str, Any]) -> bool:
    """Tell whether an act can be done to a job as it stands."""
    return job["state"] in act.states and not (act.verb == "cancel" and job.get("cancel_requested"))


def call_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a job was called with and what is tied to its end; where its message cannot be read, as text."""
    message = job["message"] if isinstance(job["message"], dict) else {}
    try:
        args, kwargs, embed = json.loads(message["body"])
    except (KeyError, TypeError, ValueError):
        return {"args": job["args"], "kwargs": job["kwargs"], "raw": True, "ties": []}
    embed = embed if isinstance(embed, dict) else {}
    ties = [(words, [name_of(one) for one in _listed(embed.get(key))])
            for key, words in (("callbacks", "When it succeeds"), ("errbacks", "When it fails"), ("chain", "Next in its chain"),
                               ("chord", "When its chord is complete"))]  # fmt: skip
    # Celery writes a chain with its next task last.
    return {"args": args, "kwargs": kwargs, "raw": False,
            "ties": [(words, names[::-1] if words.startswith("Next") else names) for words, names in ties if names]}  # fmt: skip


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def name_of(signature: Any) -> str:
    """Return what a signature calls."""
    return str(signature.get("task") or "?")[:200] if isinstance(signature, dict) else str(signature)[:200]


def timeline(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what has become of a job's attempts, the latest first; the present or last one is told by its own row."""
    told = [dict(attempt) for attempt in job["attempts"]]
    if job["claimed_at"] is not None and (job["state"] == "running" or job["state"] in FINAL_STATES):
        told = [attempt for attempt in told if attempt["attempt"] != job["attempt"]]
        told.append({
            "attempt": job["attempt"], "worker": job["worker"], "started_at": job["claimed_at"],
            "ended_at": job.get("finished_at"), "outcome": job["state"], "error": job["error"],
            "traceback": job.get("traceback"),
        })  # fmt: skip
    return sorted(told, key=lambda attempt: attempt["attempt"], reverse=True)


def head(text: str) -> str:
    """Return the beginning of a text that is too long for a page."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\n… {len(text) - LONGEST:,} characters more"


def cut(text: str | None) -> str:
    """Return the end of a text that is too long for a page; of a traceback that says most."""
    if text is None or len(text) <= LONGEST:
        return text or ""
    return f"… {len(text) - LONGEST:,} characters before\n{text[-LONGEST:]}"


def acting(verb: str) -> Endpoint:
    """Return the endpoint that does something to a job."""
    words, warning = _ASKED[verb]

    @operator
    def act(request: Request, who: Operator) -> Response:
        job_id = id_of(request)
        question = confirm(request, f"{words} job {job_id}?", warning, do=words, danger=verb in ("cancel", "discard"))
        if question is not None:
            return question
        celery = gateway_of(request).celery
        said = ACTS[verb].do(celery, job_id, lambda conn: trail.write(conn, who.name, f"job.{verb}", job_id))
        return done(request, f"{job_id} is {said}.", to=address_of(job_id))

    return act


def address_of(job_id: str) -> str:
    """Return the address of a job's page."""
    return f"/console/jobs/{quote(job_id, safe='')}"


def id_of(request: Request) -> str:
    """Return the id in a path. Raises `JobNotFound` for one that no job can have."""
    job_id: str = request.path_params["job_id"]
    if not job_id or len(job_id) > 255 or "\0" in job_id:
        raise JobNotFound(f"no job {job_id[:60]!r}, living or past", job_id=job_id)
    return job_id


routes = [
    Route("/jobs/{job_id}", show, methods=["GET"]),
    *(Route(f"/jobs/{{job_id}}/{verb}", acting(verb), methods=["POST"]) for verb in ACTS),
]
