"""The queues: what lies in Redis against their windows, what waits in Postgres, and the epoch of the broker."""

from __future__ import annotations

import time
from collections.abc import Iterator

from worker.doctor.check import Check, Severity
from worker.doctor.site import Site
from worker.ledger import examine, manage
from worker.store import keys

#: How many times its window may lie in Redis, and messages on top: processes that send at once each go by what they last saw.
_OVER, _OVER_TOO = 2, 100
#: Seconds that jobs may wait for a worker.
_BEHIND_S = 900
#: Seconds after which a relay must have made due again what an old life of the broker held; it looks several times a second.
_RELAY_S = 2.0


def _over_window(site: Site) -> Iterator[str]:
    with site.ledger() as conn:
        rows = manage.list_queues(conn)
    for row in rows:
        if (row["in_redis"] or 0) > _OVER * row["window"] + _OVER_TOO:
            yield f"queue {row['queue']!r} has {row['in_redis']:,} messages in Redis, with a window of {row['window']:,}"


def _behind(site: Site) -> Iterator[str]:
    with site.ledger() as conn:
        rows = manage.list_queues(conn)
        now = examine.clock(conn)
    for row in rows:
        waits_s = now - row["oldest"].timestamp() if row["oldest"] is not None else 0.0
        waiting = row["backlog"] + row["sent"]
        if waiting and waits_s > _BEHIND_S and not row["paused"]:
            yield (
                f"queue {row['queue']!r} has {waiting:,} jobs waiting, the oldest for {waits_s / 60:,.0f} min, "
                f"and room for {row['window']:,} in Redis"
            )


def _epoch(site: Site) -> Iterator[str]:
    key, lasts = site.coordination.role.ask([("GET", keys.epoch()), ("PTTL", keys.epoch())])
    if lasts >= 0:
        yield "the epoch of the broker has a time to live: when it is over, all jobs in Redis are sent again"
    if count := _sent_elsewhere(site):
        time.sleep(_RELAY_S)
        if _sent_elsewhere(site):
            lost = "the epoch of the broker is gone" if key is None else "the broker began a new life"
            yield f"{lost}, and {count:,} jobs sent before have not been sent again"


def _sent_elsewhere(site: Site) -> int:
    key, run = site.coordination.ask("GET", keys.epoch()), site.coordination.role.run_id()
    with site.ledger() as conn:
        return examine.sent_elsewhere(conn, f"{key.decode()}-{run}" if key is not None else "")


CHECKS = (
    Check(
        "queues.over-window", Severity.WARNING,
        "the window bounds the memory of Redis; messages beyond it did not come through the relay, or the window was made "
        "smaller",
        "see who pushes to the queue directly; a queue for foreign clients is HOLDFAST_FOREIGN_QUEUE",
        _over_window,
    ),
    Check(
        "queues.behind", Severity.WARNING,
        "jobs come in faster than they are done, or nobody does them; a larger window changes nothing",
        "start more workers for the queue; see `holdfast queues ls` and `holdfast workers ls`",
        _behind,
    ),
    Check(
        "queues.epoch", Severity.CRITICAL,
        "they lie in no queue and run only when a relay has seen that Redis lost its memory",
        "start a relay, and see whether it reaches Redis",
        _epoch,
    ),
)  # fmt: skip
