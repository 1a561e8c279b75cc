"""Callers of the gateway: what each may do and has done, their keys, which are shown once, and letting one in no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.clock import parse_duration
from worker.db import statement
from worker.errors import InvalidCaller, StoreUnavailable
from worker.gateway.console.access import Form, admin, done, form, refused, viewer
from worker.gateway.console.drafts import REFUSALS, Draft, asked, words
from worker.gateway.console.pages import confirm, page
from worker.ledger import boards, callers, trail
from worker.ledger.callers import SCOPES
from worker.ledger.operators import Operator
from worker.settings import settings

_LIST = "/console/callers"
_FIELDS = {name: name for name in ("name", "scopes", "tasks", "queues", "rate", "overlap")}
#: The scopes, with what they let a caller do.
_SCOPES = tuple(zip(SCOPES, ("hand in jobs and act on its own", "look at its own jobs", "see and do everything"), strict=True))


@viewer
def show(request: Request, who: Operator) -> Response:
    """List the callers; of a key only its beginning is known."""
    with statement() as conn:
        rows = callers.list_callers(conn)
    return page(request, "callers.html", callers=rows)


@viewer
def show_one(request: Request, who: Operator) -> Response:
    """Show one caller and how many of its jobs ended lately."""
    with statement() as conn:
        row = callers.get(conn, asked(request, "name"))
    return page(request, "caller.html", row=row, usage=_usage(row["name"]))


@admin
def new(request: Request, who: Operator) -> Response:
    """Ask for a new caller."""
    return _form(request, Draft(), ["enqueue", "read"])


@admin
def add(request: Request, who: Operator) -> Response:
    """Add a caller and show its key, this once."""
    given = form(request)
    name, terms = given.get("name", "").strip(), _terms(given)
    try:
        with trail.recording(who.name, "caller.add", name, **terms) as conn:
            key = callers.add(conn, name, **terms)
    except REFUSALS as exc:
        return _form(request, Draft.refused(given, exc, _FIELDS), terms["scopes"], status=422)
    return page(request, "caller_key.html", name=name, key=key, until=None)


@admin
def edit(request: Request, who: Operator) -> Response:
    """Ask what a caller may do from now on."""
    with statement() as conn:
        row = callers.get(conn, asked(request, "name"))
    values = {"name": row["name"], "tasks": "\n".join(row["tasks"] or ()), "queues": "\n".join(row["queues"] or ()),
              "rate": row["rate"] or ""}  # fmt: skip
    return _form(request, Draft(values), row["scopes"], row)


@admin
def change(request: Request, who: Operator) -> Response:
    """Let a caller do what was entered, and no more."""
    given = form(request)
    with statement() as conn:
        row, terms = callers.get(conn, given.get("name", "")), _terms(given)
    try:
        with trail.recording(who.name, "caller.change", row["name"], **terms) as conn:
            callers.change(conn, row["name"], **terms)
    except REFUSALS as exc:
        return _form(request, Draft.refused(given, exc, _FIELDS), terms["scopes"], row, status=422)
    return done(request, f"{row['name']} is changed.", to=_LIST)


@admin
def ask_rotate(request: Request, who: Operator) -> Response:
    """Ask how long the key before still counts."""
    with statement() as conn:
        row = callers.get(conn, asked(request, "name"))
    return page(request, "caller_rotate.html", row=row, draft=Draft({"overlap": "1d"}))


@admin
def rotate(request: Request, who: Operator) -> Response:
    """Give a caller a new key and show it, this once; the one before counts for a while."""
    given = form(request)
    with statement() as conn:
        row = callers.get(conn, given.get("name", ""))
    if given.get("prefix") != row["prefix"]:  # the form sent again, as by loading the page anew that shows the key
        return refused(request, f"The key of {row['name']} was given anew meanwhile.", to=_LIST)
    try:
        overlap_s = _overlap(given.get("overlap", "").strip())
        with trail.recording(who.name, "caller.rotate", row["name"], overlap_s=overlap_s) as conn:
            key = callers.rotate(conn, row["name"], overlap_s=overlap_s)
    except REFUSALS as exc:
        draft = Draft.refused(given, exc, _FIELDS)
        return page(request, "caller_rotate.html", status=422, row=row, draft=draft)
    with statement() as conn:
        until = callers.get(conn, row["name"])["old_key_until"]
    return page(request, "caller_key.html", name=row["name"], key=key, until=until)


@admin
def revoke(request: Request, who: Operator) -> Response:
    """Let a caller in no more; the jobs it has handed in go on."""
    name = form(request).get("name", "")
    warning = "Its keys count no more, within a second, and it cannot be undone. The jobs it has handed in go on."
    if (question := confirm(request, f"Revoke the caller {name}?", warning, do="Revoke")) is not None:
        return question
    with trail.recording(who.name, "caller.revoke", name) as conn:
        callers.revoke(conn, name)
    return done(request, f"{name} is revoked.")


def _form(
    request: Request, draft: Draft, scopes: list[str], row: Mapping[str, Any] | None = None, status: int = 200
) -> Response:
    return page(request, "caller_form.html", status=status, draft=draft, scopes=scopes, all_scopes=_SCOPES, row=row,
                queues=settings().queues)  # fmt: skip


def _terms(given: Form) -> dict[str, Any]:
    """Return what a caller may do, as `callers` takes it."""
    return {
        "scopes": [scope for scope in given.getlist("scopes") if scope], "tasks": words(given.get("tasks", "")) or None,
        "queues": words(given.get("queues", "")) or None, "rate": given.get("rate", "").strip() or None,
    }  # fmt: skip


def _overlap(text: str) -> float:
    try:
        return parse_duration(text).total_seconds()
    except ValueError as exc:
        raise InvalidCaller(f"overlap: {exc}", field="overlap") from exc


def _usage(name: str) -> dict[str, int | None]:
    """Return how many of a caller's jobs ended in this hour, day and week, as its place on the boards tells."""
    try:
        places = {window: boards.board("callers", window).place(name) for window in boards.WINDOWS}
    except StoreUnavailable:
        return dict.fromkeys(boards.WINDOWS)
    return {window: place.value if place else 0 for window, place in places.items()}


routes = [
    Route("/callers", show, methods=["GET"]),
    Route("/callers/one", show_one, methods=["GET"]),
    Route("/callers/new", new, methods=["GET"]),
    Route("/callers/new", add, methods=["POST"]),
    Route("/callers/edit", edit, methods=["GET"]),
    Route("/callers/edit", change, methods=["POST"]),
    Route("/callers/rotate", ask_rotate, methods=["GET"]),
    Route("/callers/rotate", rotate, methods=["POST"]),
    Route("/callers/revoke", revoke, methods=["POST"]),
]
