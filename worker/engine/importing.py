"""Reading a file of calls, one a line, and accepting them in bulk: again and again without accepting any twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import BinaryIO

import msgspec
from celery import Celery

from worker.engine.calls import new_job, read_call
from worker.errors import AlreadyImported, IdempotencyConflict, InvalidJob, MessageTooLarge
from worker.ledger import importing
from worker.ledger.message import NewJob
from worker.settings import settings

#: Lines accepted in one transaction: enough that its commit costs each of them next to nothing.
BATCH = 1000
#: Bytes of a line beside its arguments: a URL, metadata, keys and their names.
_BESIDE = 65_536
#: Before any job was.
_EVER = datetime(2000, 1, 1, tzinfo=UTC)

_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file: its number from 1, its bytes, the id of the job it makes, and whether it was cut as too long."""

    number: int
    raw: bytes
    job_id: str
    cut: bool


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line that makes no job, and why."""

    line: Line
    error: InvalidJob | IdempotencyConflict


@dataclass(slots=True)
class Tally:
    """How far an import has come."""

    lines: int = 0
    bytes: int = 0
    accepted: int = 0
    #: Accepted before: by an earlier import of this file, or as the job their key or unique text stands for.
    known: int = 0
    rejected: int = 0


def read_lines(file: BinaryIO) -> Iterator[Line]:
    """Read a file by lines, leaving out empty ones.

    A line's id follows from all bytes up to its end: the same in each import of the file, and of one that has grown since.
    """
    longest, chain = settings().max_message_bytes + _BESIDE, hashlib.sha256()
    number = 0
    while raw := file.readline(longest + 1):
        number, cut, kept = number + 1, len(raw) > longest, raw
        chain.update(raw)
        while not raw.endswith(b"\n") and (raw := file.readline(longest)):
            chain.update(raw)
        if kept.strip(b"\xef\xbb\xbf \t\r\n"):
            yield Line(number, kept.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n"), _id_of(chain.digest()), cut)


def _id_of(digest: bytes) -> str:
    """Return a UUID of version 8 (RFC 9562: any bits) with the first bits of a digest."""
    text = digest[:16].hex()
    return f"{text[:8]}-{text[8:12]}-8{text[13:16]}-{'89ab'[digest[8] & 3]}{text[17:20]}-{text[20:]}"


class Import:
    """One import: `run` yields the tally after each batch, and gives what is rejected to `reject`."""

    def __init__(self, app: Celery, reject: Callable[[Rejected], None], *, resume: bool = False, dry_run: bool = False) -> None:
        self._app = app
        self._reject_to = reject
        self._resume = resume
        self._dry_run = dry_run
        self._first = ""
        self._since = _EVER
        self._rejecting = Lock()
        self.tally = Tally()

    def run(self, file: BinaryIO) -> Iterator[Tally]:
        """Accept the file's calls, a batch at a time.

        Raises `AlreadyImported`, before anything is accepted, when its jobs are known and it is not to be resumed, and
        `LedgerUnavailable`; what was accepted before that stays, and is found by the next import that resumes.
        """
        writing: Future[None] | None = None
        # While one batch is on its way to Postgres the next is read: each takes about half of the time.
        with ThreadPoolExecutor(1, "holdfast-import") as writer:
            for batch in self._batches(file):
                if writing is not None:
                    writing.result()
                    yield self.tally
                writing = writer.submit(self._accept, batch)
            if writing is not None:
                writing.result()
        yield self.tally

    def _batches(self, file: BinaryIO) -> Iterator[list[tuple[Line, NewJob]]]:
        batch: list[tuple[Line, NewJob]] = []
        for line in read_lines(file):
            self.tally.lines += 1
            self.tally.bytes += len(line.raw) + 1
            self._first = self._first or line.job_id
            try:
                batch.append((line, self._job(line)))
            except InvalidJob as exc:
                self._reject(line, exc)
            if len(batch) == BATCH:
                yield batch
                batch = []
        yield batch

    def _job(self, line: Line) -> NewJob:
        if line.cut:
            raise MessageTooLarge("the line is longer than a job may be; see HOLDFAST_MAX_MESSAGE_BYTES")
        try:
            call = read_call(_decode(line.raw))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise InvalidJob(f"the line is not one JSON object: {exc}") from exc
        call.id, call.door = line.job_id, "import"
        return new_job(self._app, call)

    def _accept(self, batch: list[tuple[Line, NewJob]]) -> None:
        if not batch or self._dry_run:
            self.tally.accepted += len(batch)
            return
        if self._since == _EVER and not self._resume:
            self._begin([job.id for _, job in batch])
        outcome = importing.import_jobs([job for _, job in batch], f"import:{self._first}", self._since)
        self.tally.accepted += outcome.accepted
        self.tally.known += outcome.known
        for line, job in batch:
            if job.id in outcome.refused:
                self._reject(line, outcome.refused[job.id])

    def _begin(self, ids: list[str]) -> None:
        """Make sure that the file is new; from then on only what has ended since can be known."""
        now = importing.moment()
        if importing.known_of(ids, _EVER):
            raise AlreadyImported
        self._since = now

    def _reject(self, line: Line, error: InvalidJob | IdempotencyConflict) -> None:
        with self._rejecting:
            self.tally.rejected += 1
            self._reject_to(Rejected(line, error))
