"""The list of jobs: searched by what an operator knows of them, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker import clock
from worker.clock import parse_duration, parse_moment
from worker.db import repeatable
from worker.engine.acts import ACTS
from worker.gateway.console.access import viewer
from worker.gateway.console.pages import page
from worker.gateway.state import gateway_of
from worker.ledger import search, statistics
from worker.ledger.operators import Operator
from worker.ledger.search import Search
from worker.settings import settings
from worker.states import ACTIVE_STATES, FINAL_STATES, JobState

PATH = "/console/jobs"
#: Jobs of a page.
LIMIT = 50

#: Names for several states at once.
GROUPS: dict[str, tuple[str, ...]] = {
    "": (), "living": ACTIVE_STATES, "ended": FINAL_STATES, "broken": (JobState.FAILED, JobState.DISCARDED),
}  # fmt: skip
_WORDS = {"": "all", "living": "all that live", "ended": "all that ended", "broken": "failed or discarded"}
#: The largest number that is shown as progress.
_MOST_SHOWN = 1e15
_TEXTS = ("task", "queue", "caller", "id", "text")
_MOMENTS = ("since", "until")
FIELDS = ("state", *_TEXTS, *_MOMENTS)


@viewer
def show(request: Request, who: Operator) -> Response:
    """List the jobs that a search means."""
    given = given_of(request.query_params)
    try:
        which = search_of(given)
        cursor = request.query_params.get("cursor", "")[:1000]
        found = repeatable(lambda conn: search.page(conn, which, cursor=cursor, limit=LIMIT))
        wrong = ""
    except ValueError as exc:
        found, wrong, cursor = search.Page([]), str(exc), ""
    return page(
        request, "jobs.html", status=422 if wrong else 200, given=given, wrong=wrong, found=found, counts=statistics.states(),
        groups=_WORDS, living=ACTIVE_STATES, ends=FINAL_STATES, path=PATH, address=address, cursor=cursor, acts=ACTS,
        tasks=sorted(name for name in gateway_of(request).celery.tasks if not name.startswith("celery.")),
        queues=settings().queues, filters=filters_of(given), took=took,
        progress_of=progress_of,
    )  # fmt: skip


def given_of(fields: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of a search as they were given, those that are empty too."""
    return {name: fields.get(name, "").strip() for name in FIELDS}


def search_of(given: Mapping[str, str]) -> Search:
    """Return what the fields of a search mean. Raises `ValueError` that names the field, the value and the accepted form."""
    state = given["state"]
    if state not in GROUPS and state not in set(JobState):
        raise ValueError(f"state: {state[:40]!r} is none; it is one of {', '.join(JobState)}, living, ended or broken")
    since, until = (_moment(name, given[name]) for name in _MOMENTS)
    return Search(
        states=GROUPS.get(state, (state,)), task=given["task"], queue=given["queue"], caller=given["caller"], id=given["id"],
        text=given["text"], since=since, until=until,
    )  # fmt: skip


def _moment(name: str, text: str) -> datetime | None:
    """Read a moment, in UTC where no zone is given, or how long ago it was."""
    if not text:
        return None
    try:
        return clock.now() - parse_duration(text) if "-" not in text else parse_moment(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{name}: {text[:40]!r} is no moment; write 2030-01-31T08:00 (UTC), or 90m or 2d ago") from None


def filters_of(given: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of a search that narrow."""
    return {name: value for name, value in given.items() if value}


def address(given: Mapping[str, str], **other: Any) -> str:
    """Return the address of a search."""
    fields = filters_of({**given, **other})
    return f"{PATH}?{urlencode(fields)}" if fields else PATH


def took(job: Mapping[str, Any]) -> float | None:
    """Return the seconds that the last attempt of a job took, or has taken so far."""
    begun, ended = job["claimed_at"], job.get("finished_at")
    if begun is None or (ended is None and job["state"] != JobState.RUNNING):
        return None
    seconds: float = ((ended or clock.now()) - begun).total_seconds()
    return max(0.0, seconds)


def progress_of(job: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how far a job says it is, as `done`, perhaps `total`, and `note`; None where it says nothing that can be shown."""
    told = job["progress"]
    if job["state"] in FINAL_STATES or not isinstance(told, dict) or not _is_number(told.get("done")):
        return None
    total = told.get("total") if _is_number(told.get("total")) and told["total"] > 0 else None
    return {"done": told["done"], "total": total, "note": str(told.get("note") or "")[:300]}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST_SHOWN


routes = [Route("/jobs", show, methods=["GET"])]
