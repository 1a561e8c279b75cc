"""Policies as people set them: a limit for the keys of a scope, or the budget of the subjects of a pattern."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypedDict, get_args

from worker.errors import InvalidLimit
from worker.limits.limit import OnOutage
from worker.limits.limiter import Limiter
from worker.limits.plan import Plan, parse_budget
from worker.limits.rate import parse_rate
from worker.limits.scope import scope

KINDS = ("limit", "budget")
_FORM = "write `NAME SCOPE RATE [closed|local|open]`, as in `host {host} 10/second local`, or `budget SUBJECT CAPS`"


class Policy(TypedDict):
    """A limit or a budget, as the table `limit_policies` and the setting `limits` hold it."""

    name: str
    kind: str
    scope: str
    rate: str
    on_outage: OnOutage
    enabled: bool


def parse_policy(text: str) -> Policy:
    """Read a policy. Raises `InvalidLimit` that names what is wrong and the accepted form.

    >>> parse_policy("host {host} 10/second local")["on_outage"]
    'local'
    """
    words = text.split() if isinstance(text, str) else []
    if len(words) < 3:
        raise InvalidLimit(f"policy: {text!r} cannot be understood; {_FORM}")
    kind = "budget" if words[0] == "budget" else "limit"
    outage: Any = words.pop() if words[-1] in get_args(OnOutage) else "closed"
    name = words[1] if kind == "budget" else words[0]
    return checked(Policy(name=name, kind=kind, scope=words[1], rate=" ".join(words[2:]), on_outage=outage, enabled=True))


def checked(policy: Policy) -> Policy:
    """Return the policy with its rate written as we write it. Raises `InvalidLimit`."""
    if policy["kind"] not in KINDS:
        raise InvalidLimit(f"kind: {policy['kind']!r} is none of {', '.join(KINDS)}")
    if policy["kind"] == "limit":
        scope(policy["scope"])
        return {**policy, "rate": str(Limiter(policy["rate"], name=policy["name"], on_outage=policy["on_outage"]).rate)}
    if policy["on_outage"] != "closed":
        raise InvalidLimit("on_outage: a budget is always closed: without Redis nobody knows what is left")
    Plan({policy["scope"]: policy["rate"]})
    return {**policy, "rate": str(parse_budget(policy["rate"]))}


def plan_of(policies: Iterable[Policy]) -> Plan:
    """Return the budgets among these policies, read once for as long as they stay the same."""
    return _plan(tuple((p["scope"], p["rate"]) for p in policies if p["kind"] == "budget" and p["enabled"]))


@lru_cache(maxsize=8)
def _plan(budgets: tuple[tuple[str, str], ...]) -> Plan:
    return Plan(dict(budgets))


@lru_cache(maxsize=1024)
def limiter_of(name: str, rate: str, on_outage: OnOutage) -> Limiter:
    """Return the limiter of a policy, read once."""
    return Limiter(parse_rate(rate), name=name, on_outage=on_outage)
