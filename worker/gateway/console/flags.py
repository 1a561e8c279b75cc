"""Flags and switches: what each says and holds back, setting and removing one, and who did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.db import statement
from worker.errors import FlagNotFound, InvalidLive
from worker.gateway.console.access import admin, done, form, viewer
from worker.gateway.console.drafts import REFUSALS, Draft, asked, lines
from worker.gateway.console.pages import confirm, page
from worker.gateway.state import gateway_of
from worker.ledger import callers, flags, trail
from worker.ledger.message import DOORS
from worker.ledger.operators import Operator
from worker.live import Flag, flag, nudge
from worker.live.flags import parse_listed
from worker.settings import settings

_LIST = "/console/flags"
_FIELDS = {"flag": "name", **{name: name for name in ("name", "value", "percent", "allow", "deny", "note")}}
#: Changes of a flag that its page shows, and the longest note.
_CHANGES, _LONGEST_NOTE = 100, 1000


@viewer
def show(request: Request, who: Operator) -> Response:
    """List the flags, the switches of jobs by themselves."""
    with statement() as conn:
        rows = [{**row, "rest": _rest(row["rule"])} for row in flags.listed(conn)]
    switches = [row for row in rows if row["name"].partition(":")[0] in flags.KINDS and ":" in row["name"]]
    return page(request, "flags.html", switches=switches, flags=[row for row in rows if row not in switches])


@viewer
def show_one(request: Request, who: Operator) -> Response:
    """Show one flag and who changed it, also one that was removed."""
    name = asked(request, "name")
    with statement() as conn:
        row, changes = flags.get(conn, name), flags.history(conn, name, limit=_CHANGES)
    if row is None and not changes:
        raise HTTPException(404, f"No flag {name!r} was ever set.")
    told = [{**one, "was": flags.told(name, one["before"]), "now": flags.told(name, one["after"])} for one in changes]
    return page(request, "flag.html", name=name, row=row, changes=told)


@admin
def new(request: Request, who: Operator) -> Response:
    """Ask for a new flag."""
    return _form(request, Draft({"value": "off", "name": asked(request, "name")}))


@admin
def edit(request: Request, who: Operator) -> Response:
    """Ask what to change about a flag."""
    name = asked(request, "name")
    with statement() as conn:
        row = flags.get(conn, name)
    if row is None:
        raise FlagNotFound(f"No flag {name!r} is set.", name=name)
    values = {"name": name, "value": "on" if row["on"] else "off", "allow": _told(row["allow"]), "deny": _told(row["deny"]),
              "percent": "" if row["share"] is None else f"{row['share'] / 100:g}"}  # fmt: skip
    return _form(request, Draft(values), is_new=False)


@admin
def put(request: Request, who: Operator) -> Response:
    """Set a flag, new or in the place of the one with its name."""
    given = form(request)
    try:
        rule, note = _rule(given), _part("note", given, _note)
        _set(who, rule, note)
    except REFUSALS as exc:
        return _form(request, Draft.refused(given, exc, _FIELDS), is_new=given.get("is_new") == "yes", status=422)
    return done(request, f"{rule.name} is {rule}.", to=_LIST)


@admin
def turn(request: Request, who: Operator) -> Response:
    """Turn a flag on or off, and leave the rest of its rule."""
    name, on = form(request).get("name", ""), form(request).get("on") == "yes"
    with statement() as conn:
        row = flags.get(conn, name)
    if row is None:
        raise FlagNotFound(f"no flag {name!r} is set", name=name)
    said = "on" if on else "off"
    warning = "It holds in every process within a second." + ("" if on else " Jobs that a switch holds back wait until it is on.")
    if (question := confirm(request, f"Turn {name} {said}?", warning, do=f"Turn {said}", danger=not on)) is not None:
        return question
    _set(who, flag(name, on=on, share=row["share"], allow=row["allow"], deny=row["deny"]), row["note"])
    return done(request, f"{name} is {said}.")


@admin
def remove(request: Request, who: Operator) -> Response:
    """Remove a flag; what it held back goes on."""
    name = form(request).get("name", "")
    warning = "Jobs that it holds back go on. Whoever asks for it is told what the code says of a flag that is not set."
    if (question := confirm(request, f"Remove the flag {name}?", warning, do="Remove")) is not None:
        return question
    with trail.recording(who.name, "flag.remove", name) as conn:
        flags.remove(conn, name, actor=who.name)
    nudge()
    return done(request, f"{name} is removed.", to=_LIST)


def _set(who: Operator, rule: Flag, note: str) -> None:
    with trail.recording(who.name, "flag.set", rule.name, rule=str(rule), note=note) as conn:
        flags.put(conn, rule, actor=who.name, note=note)
    nudge()  # again: the first went out before there was anything to see


def _form(request: Request, draft: Draft, *, is_new: bool = True, status: int = 200) -> Response:
    return page(request, "flag_form.html", status=status, draft=draft, is_new=is_new, known=_names(request) if is_new else [])


def _names(request: Request) -> list[str]:
    """Return what switches there can be."""
    with statement() as conn:
        found = [f"caller:{row['name']}" for row in callers.list_callers(conn)]
    tasks = sorted(name for name in gateway_of(request).celery.tasks if not name.startswith("celery."))
    found = [*(f"queue:{name}" for name in settings().queues), *(f"task:{name}" for name in tasks), *found]
    return [*found, *(f"door:{name}" for name in DOORS)]


def _rule(given: Mapping[str, str]) -> Flag:
    if given.get("value") not in ("on", "off"):
        raise InvalidLive("value: a flag is on or off", field="value")
    share = _part("percent", given, _share)
    allow, deny = (_part(name, given, lambda text: parse_listed(lines(text))) for name in ("allow", "deny"))
    return flag(given.get("name", "").strip(), on=given["value"] == "on", share=share, allow=allow, deny=deny)


def _part(name: str, given: Mapping[str, str], reader: Callable[[str], Any]) -> Any:
    try:
        return reader(given.get(name, "").strip())
    except ValueError as exc:
        raise InvalidLive(f"{name}: {exc}", field=name) from exc


def _share(text: str) -> int | None:
    if not text:
        return None
    try:
        percent = float(text)
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:
        raise ValueError(f"{text[:40]!r} is not a percentage from 0 to 100")
    return round(percent * 100)


def _note(text: str) -> str:
    if len(text) > _LONGEST_NOTE or "\0" in text:
        raise ValueError(f"it has {len(text):,} characters; at most {_LONGEST_NOTE:,} are kept")
    return text


def _rest(rule: str) -> str:
    """Return what a rule says beside on or off."""
    first, _, rest = rule.partition(", ")
    return rest if first in ("on", "off") else rule


def _told(listed: Mapping[str, Any]) -> str:
    return "\n".join(f"{attribute}={value}" for attribute, values in sorted(listed.items()) for value in values)


routes = [
    Route("/flags", show, methods=["GET"]),
    Route("/flags/one", show_one, methods=["GET"]),
    Route("/flags/new", new, methods=["GET"]),
    Route("/flags/edit", edit, methods=["GET"]),
    Route("/flags/set", put, methods=["POST"]),
    Route("/flags/turn", turn, methods=["POST"]),
    Route("/flags/remove", remove, methods=["POST"]),
]
