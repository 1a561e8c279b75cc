"""Limits and budgets: what holds, how much of it is used, and setting, removing and forgetting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.db import statement
from worker.errors import InvalidLimit, LimitNotFound, StoreUnavailable
from worker.gateway.console.access import admin, done, form, refused, viewer
from worker.gateway.console.drafts import REFUSALS, Draft, asked
from worker.gateway.console.pages import confirm, page
from worker.ledger import balances, limits, trail
from worker.ledger.operators import Operator
from worker.limits import Algorithm, Charge
from worker.limits.limit import OnOutage
from worker.limits.limiter import peek_many
from worker.limits.peek import counted_keys, holders
from worker.limits.policy import KINDS, Policy

_LIST = "/console/limits"
_FIELDS = {name: name for name in ("name", "kind", "scope", "rate", "on_outage")} | {"budget": "rate", "subject": "scope"}
#: Keys of a limit that its page shows, and subjects whose budgets the list shows.
_KEYS, _SUBJECTS = 100, 200
#: Longest name of a budget, in characters.
_LONGEST = 200


@viewer
def show(request: Request, who: Operator) -> Response:
    """List the policies, and what the budgets stand at."""
    within = asked(request, "subject")
    with statement() as conn:
        kept = limits.kept_names(conn)
        known = balances.subjects(conn, within=within, limit=_SUBJECTS)
        try:
            rows, trouble = balances.balances(conn, known), ""
        except InvalidLimit as exc:  # a budget that was written by hand, and wrongly: it is mended here
            rows, trouble = [], str(exc)
    policies = [{**policy, "here": policy["name"] in kept} for policy in limits.policies()]
    return page(request, "limits.html", policies=policies, balances=rows, within=within, trouble=trouble,
                is_whole=len(known) < _SUBJECTS)  # fmt: skip


@viewer
def show_one(request: Request, who: Operator) -> Response:
    """Show one limit: the keys it counts for, what each has left, and who holds its slots."""
    name = asked(request, "name")
    policy = _policy(name)
    with statement() as conn:
        is_here = name in limits.kept_names(conn)
    used, is_whole = _used(policy)
    return page(request, "limit.html", policy=policy, is_here=is_here, used=used, is_whole=is_whole)


@admin
def new(request: Request, who: Operator) -> Response:
    """Ask for a new policy."""
    return _form(request, Draft({"kind": "limit", "on_outage": "closed", "enabled": "yes"}))


@admin
def edit(request: Request, who: Operator) -> Response:
    """Ask what to change about a policy."""
    policy = _policy(asked(request, "name"))
    values = {name: str(value) for name, value in policy.items()}
    return _form(request, Draft({**values, "enabled": "yes" if policy["enabled"] else ""}), is_new=False)


@admin
def put(request: Request, who: Operator) -> Response:
    """Set a policy, new or in the place of the one with its name."""
    given = form(request)
    try:
        policy = _read(given)
        with trail.recording(who.name, "limit.set", policy["name"], **policy) as conn:
            kept = limits.put(conn, policy)
    except REFUSALS as exc:
        return _form(request, Draft.refused(given, exc, _FIELDS), is_new=given.get("is_new") == "yes", status=422)
    limits.look_again()  # somebody may have looked before it was there
    return done(request, f"{kept['name']} is set: {kept['rate']} for {kept['scope']}.", to=_LIST)


@admin
def remove(request: Request, who: Operator) -> Response:
    """Remove a policy that was set here."""
    name = form(request).get("name", "")
    warning = "It holds no more within a second. One of the setting with its name holds again."
    if (question := confirm(request, f"Remove the policy {name}?", warning, do="Remove")) is not None:
        return question
    with trail.recording(who.name, "limit.remove", name) as conn:
        limits.remove(conn, name)
    limits.look_again()
    return done(request, f"{name} is removed.", to=_LIST)


@admin
def reset(request: Request, who: Operator) -> Response:
    """Forget what one key of a limit was charged."""
    name, key = form(request).get("name", ""), form(request).get("key", "")
    charge = limits.charge_on(name, key)
    if charge is None:
        return refused(request, f"There is no limit {name!r}.", to=_LIST)
    warning = "What it was charged is forgotten, and slots it holds are lent again while their holders still work."
    if (question := confirm(request, f"Reset {name} for {key or 'its one key'}?", warning, do="Reset")) is not None:
        return question
    with trail.recording(who.name, "limit.reset", name, key=key):
        _limiter(charge).reset(key)
    return done(request, f"{name} begins anew for {key}.")


def _used(policy: Policy) -> tuple[list[dict[str, Any]] | None, bool]:
    """Return what each key of a limit has left, and whether these are all; None while Redis is away, and of a budget."""
    if policy["kind"] != "limit":
        return None, True
    limit = _limiter(limits.charge_on(policy["name"], ""))
    is_slots = limit.rate.algorithm is Algorithm.SLOTS
    try:
        keys, is_whole = counted_keys(limit, most=_KEYS)
        decisions = peek_many([[limit.on(key)] for key in keys])
        held = {key: holders(limit, key) for key in keys} if is_slots else {}
    except StoreUnavailable:
        return None, True
    return [
        {"key": key, "most": limit.rate.most, "left": decision.remaining, "again_s": decision.reset_after_s,
         "holders": held.get(key, [])}
        for key, decision in zip(keys, decisions, strict=True) if decision is not None
    ], is_whole  # fmt: skip


def _limiter(charge: Charge | None) -> Any:
    if charge is None:
        raise LimitNotFound("There is no such limit.")
    return charge.limit


def _policy(name: str) -> Policy:
    found = next((policy for policy in limits.policies() if policy["name"] == name), None)
    if found is None:
        raise LimitNotFound(f"There is no limit or budget {name!r}.", name=name)
    return found


def _read(given: Mapping[str, str]) -> Policy:
    text = {name: given.get(name, "").strip() for name in ("name", "kind", "scope", "rate", "on_outage")}
    name = text["name"] or (text["scope"] if text["kind"] == "budget" else "")
    if text["kind"] == "budget" and not (0 < len(name) <= _LONGEST and name.isprintable()):
        raise InvalidLimit(f"name: {name[:40]!r} is not a line of 1 to {_LONGEST} characters")
    outage: Any = text["on_outage"] if text["kind"] == "limit" else "closed"
    return Policy(name=name, kind=text["kind"], scope=text["scope"], rate=text["rate"], on_outage=outage,
                  enabled=given.get("enabled") == "yes")  # fmt: skip


def _form(request: Request, draft: Draft, *, is_new: bool = True, status: int = 200) -> Response:
    return page(request, "limit_form.html", status=status, draft=draft, is_new=is_new, kinds=KINDS, outages=get_args(OnOutage))


routes = [
    Route("/limits", show, methods=["GET"]),
    Route("/limits/one", show_one, methods=["GET"]),
    Route("/limits/new", new, methods=["GET"]),
    Route("/limits/edit", edit, methods=["GET"]),
    Route("/limits/set", put, methods=["POST"]),
    Route("/limits/remove", remove, methods=["POST"]),
    Route("/limits/reset", reset, methods=["POST"]),
]
