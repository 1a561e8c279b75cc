"""The processes, by what they leave undone: workers that died unseen, jobs nobody sends or serves, schedules that do not fire."""

from __future__ import annotations

from collections.abc import Iterator

from worker.doctor.check import Check, Severity
from worker.doctor.site import Site
from worker.ledger import audit, examine

#: How many times its time of silence a worker may be silent before a relay must have seen it.
_MISSED = 3.0
#: Seconds that a schedule may be late; a beat looks every second.
_LATE_S = 60.0


def _silent(site: Site) -> Iterator[str]:
    with site.ledger() as conn:
        for name, seconds in examine.silent_nodes(conn, _MISSED * site.conf.node_dead_s):
            yield f"worker {name} has been silent for {seconds:,.0f} s and nobody has taken it for dead"


def _undone(site: Site) -> Iterator[str]:
    with site.ledger() as conn:
        report = audit.look(conn, after_s=_MISSED * site.conf.node_dead_s)
    # Partitions have a check of their own.
    yield from audit.findings({**report, "days_ahead": 1})


def _stuck(site: Site) -> Iterator[str]:
    with site.ledger() as conn:
        for name, seconds in examine.stuck_schedules(conn, _LATE_S):
            yield f"schedule {name!r} should have fired {seconds:,.0f} s ago"


CHECKS = (
    Check(
        "workers.silent", Severity.CRITICAL,
        "its jobs run again only once a relay has taken it for dead",
        "start a relay, and see whether it reaches Postgres; then see what became of the worker",
        _silent,
    ),
    Check(
        "jobs.undone", Severity.CRITICAL,
        "jobs that were accepted do not run",
        "start what is missing: a relay sends and rescues, a worker with `-Q NAME` serves a queue; see `holdfast workers ls`",
        _undone,
    ),
    Check(
        "schedules.stuck", Severity.WARNING,
        "what should run by the clock does not",
        "start beat; if it runs, its log says why it cannot send this one",
        _stuck,
    ),
)  # fmt: skip
