"""Schedules: when each ticks next and did last, adding and changing one, letting it tick or not, and firing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.clock import now
from worker.db import statement
from worker.engine import beat
from worker.engine.schemas import check_arguments, find_task
from worker.errors import HoldfastError, InvalidSchedule
from worker.gateway.console.access import done, form, operator, viewer
from worker.gateway.console.drafts import REFUSALS, Draft, asked
from worker.gateway.console.pages import confirm, page
from worker.gateway.console.timetable import draft_of, spec_of
from worker.gateway.state import gateway_of
from worker.ledger import manage, schedules, trail
from worker.ledger.operators import Operator
from worker.settings import settings

_LIST = "/console/schedules"
#: In which field of the form stands what an error names.
_FIELDS = {name: name for name in ("name", "task", "args", "kwargs", "queue", "priority", "expires", "timezone", "catch_up")}
_FIELDS |= {"crontab": "crontab", "every_s": "every", "every": "every"}
#: What of a schedule its entries in the trail tell.
_TOLD = ("task", "args", "kwargs", "options", "crontab", "every_s", "timezone", "catch_up", "enabled")


@viewer
def show(request: Request, who: Operator) -> Response:
    """List the schedules."""
    return page(request, "schedules.html", schedules=[_listed(row) for row in schedules.listed()])


@viewer
def show_one(request: Request, who: Operator) -> Response:
    """Show one schedule: what it sends, its next ticks, and what became of the last."""
    name = asked(request, "name")
    with statement() as conn:
        row = schedules.get(conn, name)
        last = row["last_tick"] and beat.job_id(name, row["last_tick"])
        job = _job(conn, last) if last else None
    return page(request, "schedule.html", row=_listed(row), next=_upcoming(row), job=job)


@operator
def new(request: Request, who: Operator) -> Response:
    """Ask for a new schedule."""
    return _form(request, Draft({"timezone": "UTC", "catch_up": "once", "enabled": "yes", "args": "[]", "kwargs": "{}"}))


@operator
def add(request: Request, who: Operator) -> Response:
    """Add a schedule."""
    given = form(request)
    try:
        spec = spec_of(given, given.get("name", "").strip())
        _check_call(request, spec.task, spec.args, spec.kwargs)
        with trail.recording(who.name, "schedule.add", spec.name, **_told(spec.__dict__)) as conn:
            schedules.add(conn, spec)
    except REFUSALS as exc:
        return _form(request, Draft.refused(given, exc, _FIELDS), status=422)
    return done(request, f"{spec.name} is added.", to=_LIST)


@operator
def edit(request: Request, who: Operator) -> Response:
    """Ask what to change about a schedule."""
    with statement() as conn:
        row = schedules.get(conn, asked(request, "name"))
    return _form(request, Draft(draft_of(row)), row)


@operator
def change(request: Request, who: Operator) -> Response:
    """Change a schedule."""
    given = form(request)
    with statement() as conn:
        row = schedules.get(conn, given.get("name", ""))
    try:
        spec = spec_of(given, row["name"], row["options"])
        _check_call(request, spec.task, spec.args, spec.kwargs)
        values = {name: value for name, value in _told(spec.__dict__).items() if value != row[name]}
        with trail.recording(who.name, "schedule.edit", row["name"], **values) as conn:
            schedules.edit(conn, row["name"], **values)
    except REFUSALS as exc:
        return _form(request, Draft.refused(given, exc, _FIELDS), row, status=422)
    return done(request, f"{row['name']} is changed." if values else f"{row['name']} stays as it is.", to=_LIST)


@operator
def pause(request: Request, who: Operator) -> Response:
    """Let a schedule tick no more."""
    name = form(request).get("name", "")
    warning = "It does not tick until it is resumed, and ticks of the pause are not made up for."
    if (question := confirm(request, f"Pause the schedule {name}?", warning, do="Pause")) is not None:
        return question
    with trail.recording(who.name, "schedule.pause", name) as conn:
        schedules.set_enabled(conn, name, False)
    return done(request, f"{name} is paused.")


@operator
def resume(request: Request, who: Operator) -> Response:
    """Let a paused schedule tick again."""
    name = form(request).get("name", "")
    with trail.recording(who.name, "schedule.resume", name) as conn:
        schedules.set_enabled(conn, name, True)
    return done(request, f"{name} ticks again.")


@operator
def fire(request: Request, who: Operator) -> Response:
    """Run a schedule's task now; its ticks are not touched."""
    name = form(request).get("name", "")
    warning = "Its task runs once, now; its ticks are not touched."
    if (question := confirm(request, f"Fire the schedule {name}?", warning, do="Fire", danger=False)) is not None:
        return question
    with trail.recording(who.name, "schedule.fire", name):
        job_id = beat.fire(gateway_of(request).celery, name)
    return done(request, f"{name} is fired: job {job_id}.")


@operator
def remove(request: Request, who: Operator) -> Response:
    """Remove a schedule; the jobs it has made stay."""
    name = form(request).get("name", "")
    if (question := confirm(request, f"Remove the schedule {name}?", "The jobs it has made stay.", do="Remove")) is not None:
        return question
    with trail.recording(who.name, "schedule.remove", name) as conn:
        schedules.remove(conn, name)
    return done(request, f"{name} is removed.", to=_LIST)


def _form(request: Request, draft: Draft, row: Mapping[str, Any] | None = None, status: int = 200) -> Response:
    tasks = sorted(name for name in gateway_of(request).celery.tasks if not name.startswith("celery."))
    return page(request, "schedule_form.html", status=status, draft=draft, row=row, tasks=tasks, queues=settings().queues)


def _check_call(request: Request, task: str, args: Any, kwargs: Any) -> None:
    check_arguments(find_task(gateway_of(request).celery, task), args, kwargs)


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in _TOLD}


def _listed(row: Mapping[str, Any]) -> dict[str, Any]:
    every = row["every_s"]
    when = f"every {every:g} s" if row["crontab"] is None else f"{row['crontab']} ({row['timezone']})"
    late = row["enabled"] and row["next_tick"] is not None and (now() - row["next_tick"]).total_seconds() > 60
    return {**row, "when": when, "late": late}


def _upcoming(row: Mapping[str, Any]) -> list[Any]:
    try:
        return schedules.upcoming(row, 5)
    except InvalidSchedule:  # written by hand, and wrongly: it shows, and can be mended
        return []


def _job(conn: Any, job_id: str) -> dict[str, Any] | None:
    try:
        return manage.show(conn, job_id)
    except HoldfastError:  # the history of it is over
        return None


routes = [
    Route("/schedules", show, methods=["GET"]),
    Route("/schedules/one", show_one, methods=["GET"]),
    Route("/schedules/new", new, methods=["GET"]),
    Route("/schedules/new", add, methods=["POST"]),
    Route("/schedules/edit", edit, methods=["GET"]),
    Route("/schedules/edit", change, methods=["POST"]),
    Route("/schedules/pause", pause, methods=["POST"]),
    Route("/schedules/resume", resume, methods=["POST"]),
    Route("/schedules/fire", fire, methods=["POST"]),
    Route("/schedules/remove", remove, methods=["POST"]),
]
