"""Loading a value anew before anybody misses it: early, by a job, or because somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from worker.cache.call import Call
from worker.cache.effects import Away, Send, Steps
from worker.cache.entry import TOKEN
from worker.cache.leases import FAILED, GRANTED, HELD, new_lease, try_lease, versions
from worker.cache.loads import load
from worker.cache.reads import Seen, look_again
from worker.telemetry import log

logger = log(__name__)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What came of a refresh."""

    key: str
    #: Whether the server now holds a value filled by this refresh, read back after it; nothing else counts as success.
    advanced: bool
    #: `filled`, `held` (another loads), `refused` (invalidated meanwhile), `failed` (the load, or still backing off), `away`.
    outcome: str
    #: Seconds the load took; 0 when none ran.
    load_s: float = 0.0
    #: Seconds since the fill, by the server's clock, before and after; None where there was no value.
    age_before_s: float | None = None
    age_after_s: float | None = None
    error: str = ""


def refresh_early(call: Call, job: Callable[[str], None] | None = None) -> Steps:
    """Load anew what a read found due, if nobody does; or take the lease and hand its token to a job that will.

    Gives nothing; a failure is counted and logged.
    """
    try:
        seen = yield from look_again(call)
        if seen.entry is not None and seen.entry.sound and seen.id != call.due_id:
            return  # somebody has
        tags = yield from versions(seen.tags)
        lease = new_lease(tags)
        code, *rest = yield from try_lease(call, lease, seen.id, False)
        if code != GRANTED:
            call.busy_s = _busy_s(code, rest)
            return
        if seen.entry is not None and seen.entry.left_ms > 0:
            call.counters.early.inc()
        if job is None:
            yield from load(call, lease, tags, rest[0], None)
        else:
            call.busy_s = call.terms.lease_ms / 1000
            yield Send(job, lease[:TOKEN])
    except Away:
        call.busy_s = 1.0
    except Exception as exc:
        call.busy_s = max(call.busy_s, 0.25)
        logger.warning("a refresh failed", key=call.key, error=f"{type(exc).__name__}: {exc}")


def refresh(call: Call, token: str | None = None) -> Steps:
    """Load anew whatever is there, and report what the server then has.

    The lease of this token, if it still stands, makes way for a lease of its own: one that was invalidated is not revived by a
    job that is delivered twice.
    """
    try:
        before = yield from look_again(call)
        age = _age(before)
        tags = yield from versions(before.tags)
        lease = new_lease(tags)
        code, *rest = yield from try_lease(call, lease, before.id, True, new_lease(tags, token) if token else "")
        if code != GRANTED:
            outcome = "failed" if code == FAILED else "held"
            error = rest[1].split(b":", 2)[2].decode(errors="replace") if code == FAILED else ""
            return Refreshed(call.key, False, outcome, 0.0, age, age, error)
        try:
            yield from load(call, lease, tags, rest[0], None)
        except Exception as exc:
            return Refreshed(call.key, False, "failed", call.load_s, age, age, f"{type(exc).__name__}: {exc}")
        after = yield from look_again(call)
        is_own = after.id == lease[:TOKEN].encode() and after.entry is not None and after.entry.sound
        advanced = call.outcome == "filled" and is_own
        return Refreshed(call.key, advanced, call.outcome, call.load_s, age, _age(after))
    except Away:
        return Refreshed(call.key, False, "away")


def _age(seen: Seen) -> float | None:
    return None if seen.entry is None else seen.entry.age_ms / 1000


def _busy_s(code: int, rest: list[Any]) -> float:
    """Return for how long another caller's refresh, or its failure, makes trying again useless."""
    milliseconds = rest[1] if code == HELD else rest[0] if code == FAILED else 0
    return max(0.0, milliseconds / 1000)
