"""The lines of limited jobs: what each job is limited by, as its row keeps it, and moving those that belong in another by now."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import psycopg

from worker.errors import InvalidJob, InvalidLimit
from worker.ledger import limits
from worker.ledger.message import NewJob, decode
from worker.limits import Charge
from worker.limits.limit import short
from worker.limits.policy import limiter_of, parse_policy
from worker.limits.scope import scope

_IN_LINE = "SELECT gate IS NOT NULL FROM jobs WHERE id = %s"
_WAITING = "SELECT id, task, queue, caller, message, gate FROM jobs WHERE id = ANY(%s) AND state IN ('scheduled', 'queued')"
#: A job that was marked as sent and is not sent yet is taken back; whoever claims it under its old revision is not hindered.
_MOVE = """
UPDATE jobs SET gate = moved.gate, dispatch_epoch = NULL, dispatched_at = NULL
  FROM unnest(%s::text[], %s::text[]) AS moved(id, gate)
 WHERE jobs.id = moved.id AND jobs.state IN ('scheduled', 'queued')
"""

#: The line of rows that SQL wrote and nobody has looked at yet; see `worker.ledger.completing`. Any other line is JSON.
INCOMPLETE = "?"

#: The key of jobs of which a declared limit cannot tell apart whom they are for: they share one, so that none runs unlimited.
_NOBODY = "-"

#: What tasks declare: by task, the limits each of its jobs is charged for.
_declared: dict[str, tuple[str, ...]] = {}
#: What the arguments of tasks are called, by task.
_signatures: dict[str, inspect.Signature] = {}


def declare(task: str, texts: Sequence[str]) -> None:
    """Let a task's jobs be charged for limits such as `host:{kwargs[host]} 10/second local`. Raises `InvalidLimit`."""
    for text in texts:
        _parsed(text)
    _declared[task] = tuple(texts)


def name_arguments(task: str, signature: inspect.Signature) -> None:
    """Let what a task's calls give by position, or leave to a default, be found by name, and the other way round."""
    _signatures[task] = signature


def arguments_of(task: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return `args` and `kwargs` of a call as templates may name them: each argument by its place and by its name."""
    signature = _signatures.get(task)
    try:
        bound = signature.bind(*args, **kwargs) if signature else None
    except TypeError:  # It will fail, and say so, when it runs.
        bound = None
    if signature is None or bound is None:
        return {"args": args, "kwargs": kwargs}
    bound.apply_defaults()
    named = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            del named[name]
        elif parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(name)
    return {"args": bound.args, "kwargs": named}


@lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[str, str, str, str]:
    """Return name, template, rate and outage policy."""
    head, _, rest = text.strip().partition(" ") if isinstance(text, str) else ("", "", "")
    name, colon, template = head.partition(":")
    if not colon:
        raise InvalidLimit(f"limits: {text!r} is not a name, a colon, a template and a rate: host:{{kwargs[host]}} 10/second")
    policy = parse_policy(f"{name} {template} {rest}")
    return name, template, policy["rate"], policy["on_outage"]


def gate_of(job: NewJob, *, lacking: str | None = None) -> str | None:
    """Return the line a job waits in; None for one that nothing limits.

    A job that lacks what a declared limit goes by has the key `lacking`; without one it is refused by `InvalidJob`.

    A line is the JSON text of its limits by name: of a policy its name, the key, and the scope that gave the key; of a limit that
    the task declares its name, the key, the rate and the outage policy.
    """
    declared = _declared.get(job.task, ())
    policies = [p for p in limits.policies() if p["kind"] == "limit" and p["enabled"]]
    if not declared and not policies:
        return None
    known = _known(job)
    found: dict[str, list[str]] = {}
    for policy in policies:
        key = scope(policy["scope"]).key(known)
        if key is not None:
            found[policy["name"]] = [policy["name"], short(key), policy["scope"]]
    for name, template, rate, on_outage in map(_parsed, declared):
        key = scope(template).key(known)
        key = lacking if key is None else key
        if key is None:
            raise InvalidJob(f"{job.task}: its limit {name!r} goes by {template}, which this call does not have")
        found[name] = [name, short(key), rate, on_outage]
    return json.dumps([found[name] for name in sorted(found)], separators=(",", ":")) if found else None


def _known(job: NewJob) -> Mapping[str, Any]:
    args, kwargs, _ = decode(job.message["body"])
    return {"task": job.task, "queue": job.queue, "caller": job.caller, **arguments_of(job.task, args, kwargs)}


def charges_of(gate: str) -> list[Charge]:
    """Return what the jobs of a line are charged for, as the policies say by now."""
    kept = {policy["name"]: policy for policy in limits.policies() if policy["kind"] == "limit"}
    found = []
    for name, key, *declared in json.loads(gate):
        policy = kept.get(name)
        if policy is not None and policy["enabled"]:
            found.append(limiter_of(name, policy["rate"], policy["on_outage"]).on(key))
        elif policy is None and len(declared) == 2:
            rate, on_outage = declared
            found.append(limiter_of(name, rate, on_outage).on(key))
    return found


def is_stale(gate: str) -> bool:
    """Tell whether a policy goes by another scope than when this line was formed, so that its jobs belong in others."""
    kept = {policy["name"]: policy["scope"] for policy in limits.policies()}
    entries = [entry for entry in json.loads(gate) if len(entry) == 3]
    return any(kept.get(name, template) != template for name, _, template in entries)


def move(conn: psycopg.Connection[Any], ids: Sequence[str]) -> set[str]:
    """Put waiting jobs into the lines that they belong to by now; return those that moved, which are not to be sent."""
    moved: dict[str, str | None] = {}
    for job_id, task, queue, caller, message, line in conn.execute(_WAITING, (list(ids),)).fetchall():
        # What was accepted without a limit that it lacks the key of, which came later or was not known there, is not refused now.
        found = gate_of(NewJob(id=job_id, task=task, queue=queue, message=message, caller=caller), lacking=_NOBODY)
        if found != line:
            moved[job_id] = found
    if moved:
        conn.execute(_MOVE, (list(moved), list(moved.values())))
    return set(moved)


def line_up(conn: psycopg.Connection[Any], job_id: str) -> bool:
    """Put a job that was sent past its line into it; tell whether it stands in one, and is to be sent out of that."""
    move(conn, [job_id])
    row = conn.execute(_IN_LINE, (job_id,)).fetchone()
    return row is not None and bool(row[0])
