"""The clocks of this machine, of the three servers and of the hosts of the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from worker import clock
from worker.doctor.check import Check, Severity
from worker.doctor.site import Site
from worker.ledger import examine

#: Seconds by which clocks may differ; machines that keep their time by NTP differ by a few thousandths.
_SKEW_S = 1.0


def _skewed(site: Site) -> Iterator[str]:
    with site.ledger() as conn:
        asked: list[tuple[str, Callable[[], float]]] = [("Postgres", partial(examine.clock, conn))]
        asked += [(f"Redis ({server.name})", server.clock) for server in site.servers]
        for name, ask in asked:
            ask()  # so that no connection is made while the clock is read
            ahead_s = ahead_of_ours_s(ask)
            if abs(ahead_s) > _SKEW_S:
                where = "ahead of" if ahead_s > 0 else "behind"
                yield f"the clock of {name} is {abs(ahead_s):.1f} s {where} that of this machine"
        for host, ahead_s in examine.skewed_hosts(conn, _SKEW_S):
            where = "ahead of" if ahead_s > 0 else "behind"
            yield f"the clock of {host}, where workers run, is {abs(ahead_s):.1f} s {where} that of Postgres"


def ahead_of_ours_s(ask: Callable[[], float]) -> float:
    """Return the seconds by which another clock is ahead, so far as the way there and back does not explain them."""
    before = clock.now().timestamp()
    theirs = ask()
    after = clock.now().timestamp()
    return max(theirs - after, 0.0) + min(theirs - before, 0.0)


CHECKS = (
    Check(
        "clocks.skew", Severity.WARNING,
        "what decides goes by the clocks of the servers, each by its own: tokens of locks, ages in logs, and the times people "
        "see and give are off by as much",
        "keep the time of all machines by NTP",
        _skewed,
    ),
)  # fmt: skip
