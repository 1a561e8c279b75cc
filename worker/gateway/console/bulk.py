"""Acting on many jobs: what is meant is asked first, then a job does it, whose progress a page shows whoever closes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.clock import now
from worker.db import raw, repeatable, session
from worker.engine.acts import ACTS, Act
from worker.errors import JobNotFound
from worker.gateway.console.access import done, form, operator, refused, viewer
from worker.gateway.console.job import call_of, id_of
from worker.gateway.console.jobs import address, filters_of, given_of, progress_of, search_of
from worker.gateway.console.pages import confirm, page
from worker.gateway.state import gateway_of
from worker.ledger import bulk, enqueue_in, manage, trail
from worker.ledger.operators import Operator
from worker.ledger.queues import queue_settings
from worker.ledger.search import Search
from worker.settings import settings
from worker.states import FINAL_STATES

#: Most jobs chosen by hand: those of a few pages.
_MOST_BY_HAND = 500
#: Seconds for which the jobs that a search means are counted before it is asked whether they are meant.
_COUNT_S = 1.0
#: The job goes before all others: who stops a runaway must not wait behind it.
_FIRST = 0
_WORDS = {"cancel": "Cancel", "retry": "Retry now", "replay": "Replay", "discard": "Discard"}


@operator
def start(request: Request, who: Operator) -> Response:
    """Ask whether it is meant, and have it done."""
    fields = form(request)
    act = ACTS.get(fields.get("verb", ""))
    if act is None:
        raise ValueError(f"verb: {fields.get('verb', '')[:40]!r} is none of {', '.join(ACTS)}")
    given = given_of(fields)
    if fields.get("all") == "yes":
        return _start_search(request, who, act, given)
    ids = list(dict.fromkeys(fields.getlist("ids")))
    if not ids:
        return refused(request, "No job is ticked. Tick some, or choose all that the search means.")
    if len(ids) > _MOST_BY_HAND or any(not 0 < len(job_id) <= 255 or "\0" in job_id for job_id in ids):
        return refused(request, f"ids: give 1 to {_MOST_BY_HAND} ids of jobs")
    some = f"{len(ids):,} job{'s' if len(ids) > 1 else ''}"
    return _ask(request, act, f"{_WORDS[act.verb]} {some}?", "") or _enqueue(request, who, act, ids=ids)


def _start_search(request: Request, who: Operator, act: Act, given: dict[str, str]) -> Response:
    which = search_of(given)
    meant = bulk.narrowed(which, act.states, act.default)
    if meant is None:
        return refused(request, f"A job that is {given['state']} cannot be meant here, only one that is {', '.join(act.states)}.")
    # What comes later, a job that is replayed and fails again among it, is not what was asked about.
    meant = replace(meant, until=min(meant.until or now(), now()))
    if form(request).get("confirmed") == "yes":
        return _enqueue(request, who, act, which=meant)
    ids, whole = repeatable(lambda conn: bulk.choose(conn, meant, most=bulk.MOST + 1, budget_s=_COUNT_S))
    if whole and not ids:
        return refused(request, f"No job that this search means is {' or '.join(meant.states)}.")
    count = f"{len(ids):,}" if whole else f"more than {min(len(ids), bulk.MOST):,}"
    first = f" One go takes the first {bulk.MOST:,}." if not whole else ""
    terms = ", ".join(f"{name} {value}" for name, value in filters_of(given).items()) or "every job"
    warning = f"Meant is: {terms}; of these the jobs that are {', '.join(meant.states)}.{first}"
    question = _ask(request, act, f"{_WORDS[act.verb]} {count} job{'' if count == '1' else 's'}?", warning)
    return question or _enqueue(request, who, act, which=meant)


def _ask(request: Request, act: Act, title: str, warning: str) -> Response | None:
    more = "It is done by a job, which you can watch and stop. What was done by then stays done."
    return confirm(request, title, f"{warning} {more}".strip(), do=_WORDS[act.verb], danger=act.verb in ("cancel", "discard"))


def _enqueue(request: Request, who: Operator, act: Act, **chosen: Any) -> Response:
    if isinstance(which := chosen.get("which"), Search):
        chosen["which"] = bulk.plain(which)
    queue = _open_queue()
    if queue is None:
        return refused(request, "Every queue is paused, and it takes a job to do this. Resume one, or use `holdfast jobs`.")
    task = gateway_of(request).celery.tasks[bulk.TASK]
    with session() as alone, alone.begin(), enqueue_in(alone):
        sent = task.apply_async(kwargs={"verb": act.verb, "by": who.name, **chosen}, priority=_FIRST, queue=queue)
        details = {"which": chosen["which"]} if "which" in chosen else {"ids": len(chosen["ids"]), "first": chosen["ids"][:20]}
        trail.write(raw(alone), who.name, f"bulk.{act.verb}", sent.id, **details)
    return done(request, "It has begun; this page may be closed.", to=f"/console/bulk/{sent.id}")


def _open_queue() -> str | None:
    """Return the first queue that is not paused: before many jobs are acted on, people pause what they wait in."""
    paused = {row["name"] for row in queue_settings() if row["paused"]}
    return next((name for name in settings().queues if name not in paused), None)


@viewer
def show(request: Request, who: Operator) -> Response:
    """Show how far a bulk act is, and what came of it."""
    job_id = id_of(request)
    found = repeatable(lambda conn: manage.show(conn, job_id))
    if found["task"] != bulk.TASK:
        raise JobNotFound(f"job {job_id!r} is no bulk act", job_id=job_id)
    kwargs = _kwargs(found)
    return page(
        request, "bulk.html", job=found, verb=str(kwargs.get("verb")), by=str(kwargs.get("by")), result=found.get("result"),
        which=kwargs.get("which"), ids=len(kwargs.get("ids") or ()), final=found["state"] in FINAL_STATES, words=_WORDS,
        may_stop=found["state"] in ACTS["cancel"].states and not found.get("cancel_requested"), address=address,
        progress=progress_of(found),
    )  # fmt: skip


def _kwargs(job: dict[str, Any]) -> dict[str, Any]:
    kwargs = call_of(job)["kwargs"]
    return kwargs if isinstance(kwargs, dict) else {}


@operator
def stop(request: Request, who: Operator) -> Response:
    """Ask a bulk act to stop."""
    job_id = id_of(request)
    to = f"/console/bulk/{job_id}"
    celery = gateway_of(request).celery
    ACTS["cancel"].do(celery, job_id, lambda conn: trail.write(conn, who.name, "bulk.stop", job_id))
    return done(request, "It stops.", to=to)


routes = [
    Route("/bulk", start, methods=["POST"]),
    Route("/bulk/{job_id}", show, methods=["GET"]),
    Route("/bulk/{job_id}/stop", stop, methods=["POST"]),
]
