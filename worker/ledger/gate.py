"""The gate before dispatch: jobs that a limit concerns wait in Postgres, by what they are limited by, until it admits them.

Jobs with the same limits and keys stand in one line; a round admits from the head of each line in turn, so that no backlog stands
before another. What is not admitted is not touched: it neither goes through the broker nor has its row locked or rewritten.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg

from worker.errors import LedgerUnavailable, StoreUnavailable
from worker.ledger import limits, lines
from worker.ledger.publish import Sendable
from worker.limits import Charge, ask_many, peek_many
from worker.telemetry import OUTAGES, log

logger = log(__name__)

#: Lines that one round looks at in one queue; the next round goes on behind the last that was served.
_LINES = 200
#: Lines that are asked about in one round trip, and jobs of one line that are charged in one: each must keep to the short
#: deadline of a decision.
_ASKED, _AT_ONCE = 50, 100
#: Jobs of one line that are moved into others in one round.
_DISSOLVED = 1000
#: The longest a line is left alone, in seconds: its limit may have been changed or reset meanwhile.
_LONGEST_S = 1.0

#: Hops from line to line over the index, so the cost is that of the lines, not of the jobs in them.
_WAITING = """
WITH RECURSIVE hop AS (
  (SELECT gate FROM jobs WHERE queue = %(queue)s AND gate IS NOT NULL AND gate > %(beyond)s AND dispatch_epoch IS NULL
      AND state IN ('scheduled', 'queued') ORDER BY gate LIMIT 1)
  UNION ALL
  SELECT (SELECT j.gate FROM jobs j WHERE j.queue = %(queue)s AND j.gate IS NOT NULL AND j.gate > hop.gate
             AND j.dispatch_epoch IS NULL AND j.state IN ('scheduled', 'queued') ORDER BY j.gate LIMIT 1)
    FROM hop WHERE hop.gate IS NOT NULL)
SELECT gate FROM hop WHERE gate IS NOT NULL LIMIT %(limit)s
"""
#: As `worker.ledger.dispatch` takes what nothing limits: those that are not due yet cost nothing, however many they are.
_HEAD = """
SELECT d.id, d.older FROM generate_series(0, 9) AS p(priority),
  LATERAL (SELECT id, created_at <= %(changed_at)s::timestamptz AS older FROM jobs
            WHERE queue = %(queue)s AND gate = %(gate)s AND gate IS NOT NULL AND jobs.priority = p.priority
              AND dispatch_epoch IS NULL AND state IN ('scheduled', 'queued') AND available_at <= statement_timestamp()
            ORDER BY available_at, id LIMIT %(room)s FOR UPDATE SKIP LOCKED) AS d
 LIMIT %(room)s
"""
_SEND = """
UPDATE jobs SET state = 'queued', dispatch_epoch = %(epoch)s, dispatched_at = clock_timestamp() WHERE id = ANY(%(ids)s)
RETURNING id, queue, priority, revision, message, (extract(epoch FROM dispatched_at) * 1000)::int8
"""
_OLDER = "SELECT id FROM jobs WHERE id = ANY(%s) AND created_at <= %s"
#: A job that was sent and finds no slot: it waits on, in its place, and has not been tried.
_PUT_BACK = """
UPDATE jobs SET dispatch_epoch = NULL, dispatched_at = NULL WHERE id = %s AND state = 'queued' AND revision = %s RETURNING id
"""


class _Line(NamedTuple):
    """A line that may be let out of: its limits, and how many they would admit by now; none of one that is to be dissolved."""

    gate: str
    charges: list[Charge]
    most: int


class Gate:
    """The lines of the queues as one relay sees them; it remembers which of them need not be asked again yet."""

    def __init__(self) -> None:
        self._closed_until: dict[tuple[str, str], float] = {}
        #: The line of each queue that was served last.
        self._beyond: dict[str, str] = {}

    def take_due(self, conn: psycopg.Connection[Any], queue: str, room: int, epoch: str) -> list[Sendable]:
        """Mark as sent what the limits of a queue admit, from each line in turn, and return it, to be published after that."""
        found = self._in_turn(conn, queue)
        open_lines = list(self._admitting(queue, found))
        taken: list[Sendable] = []
        last = found[-1] if found else ""
        for place, line in enumerate(open_lines):
            if len(taken) >= room:
                last = open_lines[place - 1].gate
                break
            # Each line gets its part of the room that is left: one that admits little leaves more to those behind it.
            part = max(1, (room - len(taken)) // (len(open_lines) - place))
            with self._by_itself(queue, line.gate):
                if not line.most:
                    self._dissolve(conn, queue, line.gate)
                    continue
                taken += self._admit(conn, queue, line, min(part, line.most, _AT_ONCE), epoch)
        self._beyond[queue] = last
        return taken

    def hold_back(self, conn: psycopg.Connection[Any], jobs: list[Sendable]) -> list[Sendable]:
        """Return those of the jobs, accepted as such that no limit concerns, of which that is still true; the others line up."""
        changed_at = limits.changed_at()
        if changed_at is None or not jobs:
            return jobs
        older = conn.execute(_OLDER, ([job.id for job in jobs], changed_at)).fetchall()
        moved = lines.move(conn, [row[0] for row in older]) if older else set()
        return [job for job in jobs if job.id not in moved]

    def _in_turn(self, conn: psycopg.Connection[Any], queue: str) -> list[str]:
        """Return the lines of a queue, so many at most, beginning behind the one that was served last."""
        beyond = self._beyond.get(queue, "")
        values = {"queue": queue, "beyond": beyond, "limit": _LINES}
        found = [row[0] for row in conn.execute(_WAITING, values).fetchall()]
        if beyond and len(found) < _LINES:
            values = {"queue": queue, "beyond": "", "limit": _LINES - len(found)}
            found += [row[0] for row in conn.execute(_WAITING, values).fetchall() if row[0] <= beyond]
        return [gate for gate in found if gate != lines.INCOMPLETE]

    def _admitting(self, queue: str, found: Sequence[str]) -> Iterator[_Line]:
        """Yield the lines whose limits have room, asked many in one round trip: one that has none costs no more than that."""
        now = time.monotonic()
        self._closed_until = {line: until for line, until in self._closed_until.items() if until > now}
        charged: list[tuple[str, list[Charge]]] = []
        for gate in found:
            if (queue, gate) not in self._closed_until:
                with self._by_itself(queue, gate):
                    if lines.is_stale(gate):
                        yield _Line(gate, [], 0)
                    else:
                        charged.append((gate, lines.charges_of(gate)))
        for start in range(0, len(charged), _ASKED):
            some = charged[start : start + _ASKED]
            for (gate, charges), decision in zip(some, peek_many([charges for _, charges in some]), strict=True):
                if decision is None:
                    yield _Line(gate, charges, _AT_ONCE)
                elif decision:
                    # Without Redis a policy admits though it does not know what is left: the charge will tell.
                    yield _Line(gate, charges, max(1, decision.remaining))
                else:
                    self._close(queue, gate, decision.retry_after_s)

    def _admit(self, conn: psycopg.Connection[Any], queue: str, line: _Line, room: int, epoch: str) -> list[Sendable]:
        with conn.transaction():
            values = {"queue": queue, "gate": line.gate, "room": room, "changed_at": limits.changed_at()}
            head = conn.execute(_HEAD, values).fetchall()
            moved = lines.move(conn, [job_id for job_id, older in head if older])
            ids = [job_id for job_id, _ in head if job_id not in moved]
            decisions = ask_many(line.charges, ids) if line.charges else []
            refusals = [decision for decision in decisions if not decision]
            if refusals or not head:
                self._close(queue, line.gate, refusals[0].retry_after_s if refusals else _LONGEST_S / 10)
            admitted = [job_id for job_id, decision in zip(ids, decisions, strict=True) if decision] if line.charges else ids
            rows = conn.execute(_SEND, {"ids": admitted, "epoch": epoch}).fetchall() if admitted else []
        place = {job_id: number for number, job_id in enumerate(admitted)}
        sent = [
            Sendable(job_id, queue, priority, revision, message, epoch, sent_ms, line.gate)
            for job_id, _, priority, revision, message, sent_ms in rows
        ]
        return sorted(sent, key=lambda job: place[job.id])

    def _dissolve(self, conn: psycopg.Connection[Any], queue: str, gate: str) -> None:
        with conn.transaction():
            head = conn.execute(_HEAD, {"queue": queue, "gate": gate, "room": _DISSOLVED, "changed_at": None}).fetchall()
            lines.move(conn, [job_id for job_id, _ in head])
            if not head:
                self._close(queue, gate, _LONGEST_S / 10)

    def _close(self, queue: str, gate: str, for_s: float) -> None:
        self._closed_until[queue, gate] = time.monotonic() + min(for_s, _LONGEST_S)

    @contextmanager
    def _by_itself(self, queue: str, gate: str) -> Iterator[None]:
        """Leave a line waiting that nobody can read: it may be anybody's who writes SQL, and must not hold up those behind it."""
        try:
            yield
        except (LedgerUnavailable, StoreUnavailable):
            raise
        except Exception:
            OUTAGES.labels("gate", "line left waiting").inc()
            logger.exception("the jobs of a line cannot be let through", queue=queue, gate=gate[:200])
            self._close(queue, gate, _LONGEST_S)


def put_back(conn: psycopg.Connection[Any], job_id: str, revision: int) -> bool:
    """Let a job that was sent wait on in its line, without an attempt; tell whether it still waited to be claimed."""
    return conn.execute(_PUT_BACK, (job_id, revision)).fetchone() is not None
