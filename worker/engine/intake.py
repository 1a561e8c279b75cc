"""The intake: makes jobs of the entries that services append to a stream, each entry one job, and sets aside what cannot be one.

An entry is acknowledged after its row has committed. Its job's id is derived from it: whoever reads it again finds the row.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from secrets import token_hex
from typing import Any, NoReturn

import psycopg
from celery import Celery

from worker import faults
from worker.engine.calls import new_job, read_call
from worker.errors import HoldfastError, InvalidJob, LedgerUnavailable, StoreUnavailable
from worker.ledger.intake import Outcome, accept_entries
from worker.ledger.message import NewJob
from worker.settings import settings
from worker.store import keys
from worker.streams import DeadLetters, Entry, Group, Replay, Stream
from worker.streams.entry import milliseconds
from worker.telemetry import OUTAGES, RELAYED, log

logger = log(__name__)

#: The group of the relays.
GROUP = "holdfast"
#: Consumers of one relay: while Postgres writes what one has read, the other reads.
CONSUMERS = 2
#: Entries of one transaction: more cost memory, and time until the first of them is acknowledged; with fewer, what each costs
#: beside its rows, a look for what is known and a sync to disk, counts. Of 1,000, 2,000 and 4,000 the second carried most.
_BATCH = 2000
#: The longest wait for an entry, in seconds; within the time that Redis is given for an answer.
_WAIT_S = 0.5
#: Deliveries after which an entry has killed its readers often enough.
MOST_DELIVERIES = 5
#: Entries taken over in one round; each is handled alone.
_TAKEN_OVER = 200
#: Seconds between two looks for what can be dropped.
_TRIM_S = 1.0
#: Seconds after which a consumer that did nothing and holds nothing is forgotten.
_FORGET_S = 3600.0
#: Seconds between two tries while Postgres is away.
_AGAIN_S = 1.0

#: What Postgres says of a row that it will never take; anything else may pass.
_UNSTORABLE = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded)

_48_BITS = (1 << 48) - 1

#: The fields of an entry that hold JSON, those that hold whole numbers, and those by another name elsewhere.
_JSON = ("args", "kwargs", "metadata")
_WHOLE = ("priority", "max_attempts")
_NAMES = {"key": "idempotency_key"}


@dataclass
class Tally:
    """What became of entries."""

    accepted: int = 0
    known: int = 0
    refused: int = 0


class Intake:
    """One consumer of the intake stream; any number may run."""

    def __init__(self, app: Celery, stopping: threading.Event | None = None) -> None:
        self.app = app
        self.stopping = stopping or threading.Event()
        self.stream = Stream(keys.intake())
        self.dead = DeadLetters(self.stream, keys.dead(keys.intake()))
        self.group = Group(self.stream, GROUP, consumer=f"{socket.gethostname()}-{os.getpid()}-{token_hex(3)}"[:200])
        self._look_at = self._trim_at = 0.0

    # ---- rounds

    def round(self) -> bool:
        """Take what is new, waiting a moment for it, and what dead consumers left; tell that there may be more.

        Raises `StoreUnavailable`, and `StreamGone` when Redis was flushed: what was accepted is safe, and the next round goes on.
        """
        self._look_after()
        wait_s = min(_WAIT_S, settings().redis_timeout_s / 2)
        self.take(self.group.read(limit=_BATCH, wait_s=wait_s))
        return True

    def _look_after(self) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + min(1.0, settings().intake_reclaim_s / 2)
            self.take_over()
        if now >= self._trim_at:
            self._trim_at = now + _TRIM_S
            self.stream.trim(keep=settings().intake_keep_size)
            self.group.forget_idle(_FORGET_S)

    def take_over(self) -> None:
        """Handle, one by one, the entries that dead consumers hold, and set aside those that killed too many."""
        for entry_id in self.group.reclaim(idle_s=settings().intake_reclaim_s, limit=_TAKEN_OVER):
            if self.stopping.is_set():
                return
            entry = self.group.deliver(entry_id)
            if entry is None:
                continue
            if entry.deliveries > MOST_DELIVERIES:
                why = f"it was delivered {MOST_DELIVERIES} times, and each time its reader died or failed"
                self._set_aside(entry, InvalidJob(why, code="poison"))
            else:
                self.take([entry])

    def take(self, entries: Sequence[Entry]) -> Tally:
        """Accept entries, set aside those that cannot be, and acknowledge both. Raises `StoreUnavailable`."""
        if not entries:
            return Tally()
        faults.point(faults.AFTER_READ)
        # After the reading: another consumer may have seen the end of a life before this one did. What was read in the old one
        # is gone from Redis, so nobody can read it again under another id.
        self.group.ensure()
        tally, refused = self.accept(self.group, entries)
        for entry, why in refused:
            self._set_aside(entry, why)
        faults.point(faults.BEFORE_ACK)
        aside = {entry.id for entry, _ in refused}
        self.group.ack([entry.id for entry in entries if entry.id not in aside])
        faults.point(faults.AFTER_ACK)
        RELAYED.labels("taken in").inc(tally.accepted)
        return tally

    def _set_aside(self, entry: Entry, why: HoldfastError) -> None:
        code, wrong = getattr(why, "code", "invalid_job"), getattr(why, "field", "")
        self.dead.put(self.group, entry, str(why), code=code, field=wrong)
        RELAYED.labels("set aside").inc()
        logger.warning("an entry of the intake was set aside", entry=entry.id, code=code, field=wrong, reason=str(why)[:300])

    # ---- accepting

    def accept(self, group: Group, entries: Sequence[Entry]) -> tuple[Tally, list[tuple[Entry, HoldfastError]]]:
        """Make the jobs of the entries durable; return the account, and the entries that cannot be jobs, with the reason."""
        refused: list[tuple[Entry, HoldfastError]] = []
        jobs: list[tuple[Entry, NewJob]] = []
        for entry in entries:
            try:
                jobs.append((entry, self.job_of(entry)))
            except HoldfastError as exc:
                refused.append((entry, exc))
            except Exception as exc:  # A stranger's bytes can be wrong in any way, and none may hold up those behind it.
                refused.append((entry, InvalidJob(f"the entry cannot be read: {type(exc).__name__}: {exc}")))
        outcome = self._accept(group, jobs)
        by_id = {job.id: entry for entry, job in jobs}
        refused += [(by_id[job_id], why) for job_id, why in outcome.refused.items()]
        return Tally(outcome.accepted, outcome.known, len(refused)), refused

    def job_of(self, entry: Entry) -> NewJob:
        """Return the job that an entry asks for. Raises `InvalidJob` with `code` and `field`."""
        call = read_call(values_of(entry))
        call.id, call.door = job_id_of(self.group.life, entry), "stream"
        return new_job(self.app, call)

    def _accept(self, group: Group, jobs: Sequence[tuple[Entry, NewJob]]) -> Outcome:
        """Accept the jobs, all at once if that goes; of those that cannot be, each is found."""
        if not jobs:
            return Outcome()
        try:
            return self._patiently(group, jobs)
        except (InvalidJob, *_UNSTORABLE) as exc:
            if len(jobs) == 1:
                why = exc if isinstance(exc, InvalidJob) else InvalidJob(f"it cannot be stored: {str(exc).splitlines()[0]}")
                return Outcome(refused={jobs[0][1].id: why})
        middle = len(jobs) // 2
        halves = self._accept(group, jobs[:middle]), self._accept(group, jobs[middle:])
        return Outcome(
            sum(half.accepted for half in halves), sum(half.known for half in halves), halves[0].refused | halves[1].refused
        )

    def _patiently(self, group: Group, jobs: Sequence[tuple[Entry, NewJob]]) -> Outcome:
        """Accept the jobs; while Postgres is away, hold on to the entries, so that no outage looks like their fault."""
        since_ms = min(milliseconds(entry.id) for entry, _ in jobs)
        while True:
            try:
                return accept_entries([job for _, job in jobs], since_ms)
            except LedgerUnavailable:
                OUTAGES.labels("intake", "waits for postgres").inc()
                if self.stopping.wait(_AGAIN_S):
                    raise
                try:
                    group.keep([entry.id for entry, _ in jobs])
                except StoreUnavailable:  # both are away; another may read them as well by then, and finds their rows
                    OUTAGES.labels("intake", "cannot hold on").inc()

    # ---- again

    def replay(self, name: str, since: datetime, until: datetime | None = None) -> Tally:
        """Read the entries of a time range once more, beside the live group, and accept what has no row.

        For a database that was restored to an earlier moment: what is known is not accepted again. Raises `InvalidStream`.
        """
        again = Replay(self.stream, name, consumer=self.group.consumer, since=since, until=until)
        total = Tally()
        self.group.ensure()
        while entries := again.read(limit=_BATCH):
            tally, _ = self.accept(again, entries)
            again.ack([entry.id for entry in entries])
            total = Tally(*(getattr(total, name) + getattr(tally, name) for name in ("accepted", "known", "refused")))
        again.destroy()
        return total


def values_of(entry: Entry) -> dict[str, Any]:
    """Return an entry's fields as a door's values. Raises `InvalidJob` that names the field which cannot be read."""
    return {_NAMES.get(name, name): _value(_NAMES.get(name, name), raw) for name, raw in entry.fields.items()}


def _value(name: str, raw: bytes) -> Any:
    try:
        text = raw.decode()
        if name in _JSON:
            return _decode(text)
        return int(text) if name in _WHOLE and text.lstrip("-").isdecimal() else text
    except (ValueError, RecursionError) as exc:
        form = "UTF-8" if isinstance(exc, UnicodeDecodeError) else "JSON"
        raise InvalidJob(f"{name}: {raw[:60]!r} is not {form}: {exc}", field=name) from exc


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_decode = json.JSONDecoder(parse_constant=_refuse).decode


def job_id_of(life: str, entry: Entry) -> str:
    """Return the id of an entry's job: a UUID of version 8 (RFC 9562), the entry's moment and then a digest.

    The digest is of the stream's life, the entry's id and all it holds: after a flush, or a failover to a server that is a
    moment behind, another entry may come under the same id, and must not be taken for this one.
    """
    found = hashlib.sha256(repr((life, entry.id, entry.fields)).encode()).hexdigest()
    text = f"{milliseconds(entry.id) & _48_BITS:012x}8{found[:3]}b{found[3:18]}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
