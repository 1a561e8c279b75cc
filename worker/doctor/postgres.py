"""Postgres: its schema, transactions that somebody forgot, indexes that have grown, and the partitions of history."""

from __future__ import annotations

from collections.abc import Iterator

from worker.db import check_schema
from worker.doctor.check import Check, Severity
from worker.doctor.site import Site
from worker.errors import SchemaOutdated
from worker.ledger import audit, examine, history

#: Seconds that a transaction may lie idle; jobs keep theirs open only between two statements.
_IDLE_S = 60.0
#: How many times an index may be as large as it need be, and bytes from which that is told: after a backlog of millions
#: `jobs` has indexes that are mostly empty and are filled again.
_BLOATED, _BLOATED_BYTES = 4.0, 256 * 1024 * 1024
#: Partitions ahead of which fewer are told; upkeep makes seven, once an hour.
_DAYS_AHEAD = 3


def _outdated(site: Site) -> Iterator[str]:
    try:
        with site.ledger():
            check_schema()
    except SchemaOutdated as exc:
        yield str(exc)


def _idle(site: Site) -> Iterator[str]:
    with site.ledger() as conn:
        for pid, name, seconds in examine.idle_in_transaction(conn, _IDLE_S):
            yield f"connection {pid} ({name or 'without a name'}) has been idle in a transaction for {seconds:,.0f} s"


def _bloated(site: Site) -> Iterator[str]:
    with site.ledger() as conn:
        for one in examine.bloated(conn, least=_BLOATED_BYTES, ratio=_BLOATED):
            yield f"index {one.index} takes {one.bytes / 1024 / 1024:,.0f} MB; about {one.needed / 1024 / 1024:,.1f} MB would do"


def _partitions(site: Site) -> Iterator[str]:
    with site.ledger() as conn:
        ahead, old = audit.days_ahead(conn), examine.old_partitions(conn)
    if ahead < _DAYS_AHEAD:
        yield f"history has partitions for {ahead} days ahead"
    if old:
        yield f"{old} days of history are older than HOLDFAST_HISTORY_DAYS ({site.conf.history_days}) and still kept"


def _keep_up(site: Site) -> str:
    with site.ledger() as conn:
        changed = history.keep_up(conn)
    return f"{len(changed['made'])} partitions made and {len(changed['dropped'])} dropped"


CHECKS = (
    Check(
        "postgres.schema", Severity.CRITICAL,
        "workers of this release refuse to start on it, and nothing can be accepted",
        "run `holdfast db upgrade`",
        _outdated,
    ),
    Check(
        "postgres.idle-in-transaction", Severity.WARNING,
        "what it has locked stays locked, and nothing that was deleted since it began can be cleaned up: tables and indexes "
        "grow",
        "mend the program, or set `idle_in_transaction_session_timeout`; `SELECT pg_terminate_backend(PID)` ends one",
        _idle,
    ),
    Check(
        "postgres.index-bloat", Severity.WARNING,
        "an index that is mostly empty costs memory and time with each look",
        "run `REINDEX INDEX CONCURRENTLY NAME` at a quiet time; see that autovacuum keeps up",
        _bloated,
    ),
    Check(
        "postgres.partitions", Severity.WARNING,
        "without a partition for the day jobs end in the default one, which can only be deleted from, row by row",
        "run beat and a worker, which run maintenance.upkeep each hour; `--fix` does so now",
        _partitions, _keep_up,
    ),
)  # fmt: skip
