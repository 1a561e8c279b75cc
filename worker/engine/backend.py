"""The result backend: it ends attempts in Postgres and keeps their results readable, from Redis when it has them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from celery import states
from celery.app.task import Context
from celery.backends.base import KeyValueStoreBackend, _create_chord_error_with_cause
from celery.canvas import maybe_signature
from celery.exceptions import ChordError, Ignore, NotRegistered, Reject, Retry, TaskRevokedError, TimeoutError, WorkerLostError
from celery.result import GroupResult, result_from_tuple
from kombu.exceptions import EncodeError
from kombu.utils.json import loads

from models import JobState
from worker import locks
from worker.db import is_away, repeatable, statement
from worker.engine import node
from worker.engine.run import Phase, Run, current, leave, returns
from worker.errors import ClaimLost, InvalidJob, LedgerUnavailable, StoreUnavailable
from worker.ledger import chords, results, settle
from worker.ledger.accept import Scope, SessionScope, accept_rows, current_scope, scope
from worker.ledger.message import HEADER, NewJob, fault_of
from worker.ledger.publish import Sendable, epochs_for, publish
from worker.ledger.settle import Guard, Outcome
from worker.settings import settings
from worker.store import cache, keys
from worker.telemetry import OUTAGES, SETTLED, log

logger = log(__name__)

_PREFIX = keys.result("")
#: How a final Celery status is called in the ledger.
_STATES = {states.SUCCESS: JobState.SUCCEEDED, states.FAILURE: JobState.FAILED, states.REVOKED: JobState.CANCELLED}

#: Told by the job's row, which knows better: a duplicate delivery reports STARTED before it is dropped.
_TOLD_BY_ROWS = (states.STARTED, states.RETRY)


@dataclass
class _Ending:
    """A transaction in which a job ends: what Celery stores meanwhile goes through it, and is told once it has committed."""

    conn: psycopg.Connection[Any]
    job_id: str
    guard: Guard
    #: The state the job takes when Celery stores its outcome; None for what the Celery status says.
    state: JobState | None = None
    told: list[tuple[str, str]] = field(default_factory=list)
    sendables: list[Sendable] = field(default_factory=list)
    held: bool | None = None

    def accept(self, jobs: Sequence[NewJob]) -> list[str]:
        """Accept what ends with the job, such as its error callbacks, in the same transaction."""
        written = accept_rows(self.conn, jobs, epochs_for([job.queue for job in jobs]))
        self.sendables += [sendable for _, sendable in written if sendable]
        return [job_id for job_id, _ in written]


_ending: ContextVar[_Ending | None] = ContextVar("holdfast_ending", default=None)


class LedgerBackend(KeyValueStoreBackend):  # type: ignore[misc]
    """Results as Celery's clients know them, with Postgres behind: Redis, miss, Postgres, fill.

    **Guarantee:** a result is read after a flush or an outage of Redis as well, for as long as history is kept.
    """

    supports_autoexpire = True
    supports_native_join = True
    persistent = True

    # ---- ending the attempt of this thread

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, state: str = states.SUCCESS
    ) -> None:
        """End a run as succeeded: its writes, its callbacks and its mark in one commit."""
        run = self._own_run(task_id, request)
        if run is None:
            super().mark_as_done(task_id, result, request, store_result, state)
            return
        keep = store_result and not getattr(request, "ignore_result", False)
        # Encoded before anything is ended: a result that is no JSON fails the task. One that nobody wants is not encoded.
        encoded = self.encode_result(result, state) if keep or request.chord else None
        children = self.current_task_children(request)
        outcome = Outcome(
            JobState.SUCCEEDED,
            result=self._json(encoded) if keep else None,
            children=self.encode(children) if children else None,
        )
        text = self.encode(self._meta(task_id, encoded, state, None, request)) if keep else ""
        if request.chord:
            run.session  # noqa: B018 - the part counts in the transaction that ends the job, so there must be one
        with run.settling("succeeded") as conn:
            # A task that retried itself and returned all the same goes on; what it wrote stays.
            if run.successor is not None:
                held = settle.retry(conn, run.guard, run.successor, error=None, traceback=None)
            else:
                held = settle.finish(conn, task_id, run.guard, outcome)
            if not held:
                raise ClaimLost(f"job {task_id} is no longer this attempt's; what it did was rolled back")
            # The job's row before the chord's, as everywhere: the other order would wait for itself.
            if request.chord and run.successor is None:
                with scope(run):
                    self._return_part(conn, request, state, encoded)
        if keep and run.successor is None:
            self._write_through(task_id, text)

    def mark_as_failure(
        self,
        task_id: str,
        exc: BaseException,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        call_errbacks: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        """End a run as failed, its writes rolled back; or a job of which only its worker's parent can still speak."""
        ending = _ending.get()
        run = self._own_run(task_id, request)
        if run is not None and ending is None:
            if run.phase is Phase.OVER:
                return
            if is_away(exc):
                self._lose_run(run, f"Postgres went away while it ran: {exc}")
            else:
                self._fail_run(run, exc, traceback, request, call_errbacks, state)
            return
        if ending is None and (isinstance(exc, NotRegistered) or _is_durable(request)):
            # The main process must outlive an outage; the job is found by its node's look for lost ones, or sent again.
            try:
                self._end_as_parent(task_id, exc, traceback, request)
            except LedgerUnavailable as away:
                logger.warning("the end of a job could not be written", job=task_id, error=str(away))
            return
        super().mark_as_failure(task_id, exc, traceback, request, store_result, call_errbacks, state)

    def _fail_run(self, run: Run, exc: BaseException, traceback: Any, request: Any, call_errbacks: bool, state: str) -> None:
        run.roll_back()
        run.session  # noqa: B018 - error callbacks and the mark commit together
        with run.settling("failed") as conn:
            ending = _Ending(conn, run.claim.job_id, run.guard)
            with self._within(ending, run):
                super().mark_as_failure(run.claim.job_id, exc, traceback, request, True, call_errbacks, state)
            if not ending.held:
                raise ClaimLost(f"job {run.claim.job_id} is no longer this attempt's; its failure was not recorded")
        self._tell_all(ending)

    def _lose_run(self, run: Run, cause: str) -> None:
        """Give back an attempt that was cut off: not the task's failure, unless it happens every time."""
        run.end()
        try:
            self.crash(run.claim.job_id, run.guard, cause)
        except LedgerUnavailable:
            returns.add(run.claim)

    def settle_aside(self, run: Run, exc: Retry | Ignore | Reject, request: Any) -> None:
        """End an attempt that neither succeeded nor failed: a retry, a replacement, a rejection, or a task that ended itself."""
        error = repr(getattr(exc, "exc", None) or exc)
        job_id, most = run.claim.job_id, run.claim.max_attempts
        if isinstance(exc, Reject) and not exc.requeue:
            self._end_run(run, exc, JobState.DISCARDED, f"rejected: {exc.reason!r}")
            return
        if isinstance(exc, Retry) and run.successor is not None and most is not None and run.claim.attempt >= most:
            self._end_run(run, exc.exc or exc, JobState.DISCARDED, f"all {most} attempts used; the last: {error}")
            return
        if not _did_its_work(run, exc):
            run.undo()
        with run.settling(type(exc).__name__.lower()) as conn:
            if isinstance(exc, Reject):
                held = settle.give_back(conn, job_id, run.guard, "rejected", error=error)
            elif run.successor is not None:
                held = settle.retry(
                    conn, run.guard, run.successor, error=error if isinstance(exc, Retry) else None, traceback=None
                )
            elif run.replaced:
                held = settle.await_replacement(conn, job_id, run.guard)
            else:
                held = settle.finish(conn, job_id, run.guard, self._own_outcome(run, exc))
            if not held:
                raise ClaimLost(f"job {job_id} is no longer this attempt's")

    def _end_run(self, run: Run, exc: BaseException, state: JobState, error: str | None = None) -> None:
        """End a run for good in another way than its function did, with all that Celery ties to an end."""
        run.roll_back()
        run.end()
        try:
            self.end_job(run.claim.job_id, run.guard, exc, state, error)
        except LedgerUnavailable:
            returns.add(run.claim)

    def _own_outcome(self, run: Run, exc: BaseException) -> Outcome:
        if run.manual is None:
            why = "raised Retry without self.retry()" if isinstance(exc, Retry) else "ignored by the task"
            return Outcome(JobState.DISCARDED, error=why)
        status, meta = run.manual
        result = self.encode(meta)
        return Outcome(_STATES[status], result=result, error=_error_line(meta) if status != states.SUCCESS else None)

    def process_cleanup(self) -> None:
        """Leave the run; one that nobody ended (the body raised SystemExit or the like) counts as a death of its worker."""
        run, exc = current(), sys.exc_info()[1]
        leave()
        if run is None or run.phase is Phase.OVER:
            return
        if isinstance(exc, Exception) and not is_away(exc):
            # Celery could not send a callback or the rest of the chain: the attempt failed, and would each time.
            self._end_run(run, exc, JobState.FAILED)
        elif _is_signalled(exc):
            run.end()  # what the signal means is for its sender to say: a revocation, a shutdown, or a lost child
        else:
            self._lose_run(run, "the task ended its process or thread")

    # ---- ending a job whose attempt cannot speak

    def _end_as_parent(self, task_id: str, exc: BaseException, traceback: Any, request: Any) -> None:
        if isinstance(exc, NotRegistered):
            self.end_job(task_id, Guard.waiting(), exc, JobState.DISCARDED, f"unknown task {exc}")
        elif isinstance(exc, WorkerLostError):
            self.crash(task_id, _parent_guard(request), str(exc))
        elif not isinstance(exc, Reject):  # A rejection was settled by the attempt itself.
            self.end_job(task_id, _parent_guard(request), exc, JobState.FAILED, traceback=traceback)

    def mark_as_revoked(
        self, task_id: str, reason: str = "", request: Any = None, store_result: bool = True, state: str = states.REVOKED
    ) -> None:
        """End a job that was revoked: while it waits, or by its worker's parent once its process was terminated."""
        if not _is_durable(request) or _ending.get() is not None:
            super().mark_as_revoked(task_id, reason, request, store_result, state)
            return
        guard = _parent_guard(request) if reason == "terminated" else Guard.waiting()
        try:
            self.end_job(task_id, guard, TaskRevokedError(reason), JobState.CANCELLED, f"revoked: {reason}")
        except LedgerUnavailable as away:
            logger.warning("the end of a job could not be written", job=task_id, error=str(away))

    def crash(self, task_id: str, guard: Guard, cause: str) -> bool:
        """Count a death of the job's worker: queue it again, or discard it when it has caused too many.

        Tells whether the guard held. Raises `LedgerUnavailable`; the job then waits for the rescue of its node.
        """
        with statement() as conn:
            row = conn.execute(results.CRASHES.format(guard=guard.sql), {"id": task_id, **guard.values}).fetchone()
        if row is None:
            return False
        deaths, attempt, most = row[0] + 1, row[1], row[2]
        if node.is_killing():
            return self._return_to_queue(task_id, guard, row[3], "handed back", "its worker was stopped")
        if deaths >= settings().max_crashes:
            return self.end_job(
                task_id, guard, WorkerLostError(cause), JobState.DISCARDED, f"its worker died {deaths} times; the last: {cause}"
            )
        if most is not None and attempt >= most:
            return self.end_job(task_id, guard, WorkerLostError(cause), JobState.DISCARDED, f"all {most} attempts used: {cause}")
        return self._return_to_queue(task_id, guard, row[3], "crashed", cause)

    def _return_to_queue(self, task_id: str, guard: Guard, token: UUID | None, outcome: str, error: str) -> bool:
        _unlock(task_id, token)  # first: whoever is sent the job next must not take that for a duplicate
        with statement() as conn:
            held = settle.give_back(conn, task_id, guard, outcome, error=error, crashed=outcome == "crashed")
        SETTLED.labels(outcome).inc()
        return held

    def end_job(
        self,
        task_id: str,
        guard: Guard,
        exc: BaseException,
        state: JobState,
        error: str | None = None,
        traceback: Any = None,
    ) -> bool:
        """End a job from outside its attempt, with all that Celery ties to an end: chord, chain and error callbacks.

        Tells whether the guard held; everything is one transaction.
        """
        with statement() as conn:
            with conn.transaction():
                row = conn.execute(results.LOCK.format(guard=guard.sql), {"id": task_id, **guard.values}).fetchone()
                if row is None:
                    return False
                ending = _Ending(conn, task_id, guard, state)
                request = _context_of(task_id, row[0])
                with self._within(ending, None):
                    celery_state = states.REVOKED if state in (JobState.CANCELLED, JobState.EXPIRED) else states.FAILURE
                    ending_error = error or _error_line_of(exc)
                    self._store_ending(ending, exc, traceback, request, celery_state, ending_error)
                    if request.chord:
                        self.on_chord_part_return(request, celery_state, exc)
                    self._fail_chain(getattr(request, "chain", None), exc, traceback, state=celery_state)
                    if request.errbacks and celery_state == states.FAILURE:
                        self._call_task_errbacks(request, exc, traceback)
        SETTLED.labels(state.value).inc()
        _unlock(task_id, row[1])
        self._tell_all(ending)
        return bool(ending.held)

    def _store_ending(
        self, ending: _Ending, exc: BaseException, traceback: Any, request: Any, state: str, error: str
    ) -> None:
        encoded = self.encode_result(exc, state)
        meta = self._meta(ending.job_id, encoded, state, traceback, request)
        assert ending.state is not None
        outcome = Outcome(ending.state, result=self.encode(encoded), error=error, traceback=traceback and str(traceback))
        ending.held = settle.finish(ending.conn, ending.job_id, ending.guard, outcome)
        ending.told.append((ending.job_id, self.encode(meta)))

    @contextmanager
    def _within(self, ending: _Ending, where: Scope | None) -> Iterator[None]:
        token = _ending.set(ending)
        try:
            with scope(where or ending):
                yield
        finally:
            _ending.reset(token)

    def _tell_all(self, ending: _Ending) -> None:
        for job_id, text in ending.told:
            self._write_through(job_id, text)
        publish(ending.sendables)

    def _own_run(self, task_id: str, request: Any) -> Run | None:
        run = current()
        if run is None or run.claim.job_id != task_id or getattr(request, "is_eager", False):
            return None
        return run

    # ---- storing

    def _json(self, value: Any) -> str:
        """Return a result as JSON text. Raises `EncodeError`, which fails the task, for what Postgres would not take as JSON."""
        text = str(self.encode(value))
        if "NaN" in text or "Infinity" in text:
            try:
                json.dumps(json.loads(text), allow_nan=False)
            except ValueError as exc:
                raise EncodeError(f"the result holds NaN or Infinity, for which JSON has no word: {exc}") from exc
        return text

    def _meta(self, task_id: str, encoded: Any, state: str, traceback: Any, request: Any) -> dict[str, Any]:
        meta: dict[str, Any] = self._get_result_meta(result=encoded, state=state, traceback=traceback, request=request)
        return {**meta, "task_id": task_id}

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """Store what Celery reports: in the transaction that ends a job, if there is one; otherwise as news for watchers."""
        text = self.encode(self._meta(task_id, result, state, traceback, request))
        ending, run = _ending.get(), current()
        if ending is not None and state in _STATES:
            self._store_in(ending, task_id, result, state, traceback, request)
            ending.told.append((task_id, text))
        elif run is not None and run.claim.job_id == task_id and run.phase is not Phase.OVER and state in _STATES:
            run.manual = (state, result)
        elif state not in _TOLD_BY_ROWS or request is None or not _is_durable(request):
            self._write_through(task_id, text)
        return result

    def _store_in(self, ending: _Ending, task_id: str, result: Any, state: str, traceback: Any, request: Any) -> None:
        final = ending.state if task_id == ending.job_id and ending.state else _STATES[state]
        outcome = Outcome(
            final, result=self.encode(result), error=_error_line(result), traceback=traceback and str(traceback)
        )
        if task_id == ending.job_id:
            ending.held = settle.finish(ending.conn, task_id, ending.guard, outcome)
        elif not settle.finish(ending.conn, task_id, settle.AWAITING, outcome):
            settle.record(ending.conn, task_id, getattr(request, "task", None) or "", outcome)

    def tell(self, task_id: str, state: str, meta: Any) -> None:
        """Wake whoever watches a running job; the news is not kept, since the job's row tells it for as long as it is true."""
        try:
            with cache().use() as client:
                client.publish(keys.result(task_id), self.encode(self._meta(task_id, meta, state, None, None)))
        except StoreUnavailable:
            OUTAGES.labels("results", "nobody woken").inc()

    def _write_through(self, task_id: str, text: str) -> None:
        self.set(keys.result(task_id), text)

    # ---- reading: Redis, miss, Postgres, fill

    def get(self, key: Any) -> Any:
        """Return the value of a key, from Postgres when Redis does not have it."""
        return self.mget([key])[0]

    def mget(self, wanted: Sequence[Any]) -> list[Any]:
        """Return the values of several keys; the missing ones are read from Postgres in one query and filled in."""
        names = [key.decode() if isinstance(key, bytes) else key for key in wanted]
        found = self._from_cache(names)
        ids = [name.removeprefix(_PREFIX) for name in names]
        # What is cached and not final is a state that a task gave itself: its row may have ended meanwhile.
        doubtful = [job_id for job_id, value in zip(ids, found, strict=True) if not _is_final(value)]
        if not doubtful:
            return found
        kept = self._from_ledger(doubtful)
        return [
            kept[job_id] if job_id in kept and (value is None or _is_final(kept[job_id])) else value
            for job_id, value in zip(ids, found, strict=True)
        ]

    def _from_cache(self, names: list[str]) -> list[Any]:
        try:
            with cache().use() as client:
                return list(client.mget(names))
        except StoreUnavailable:
            OUTAGES.labels("results", "read from postgres").inc()
            return [None] * len(names)

    def _from_ledger(self, job_ids: list[str]) -> dict[str, Any]:
        texts: dict[str, Any] = {}
        for row in repeatable(lambda conn: results.read(conn, job_ids)):
            text = self.encode(_meta_of(row)).encode()
            texts[row.id] = text
            if row.finished_at is not None:
                self._fill(row.id, text)
        return texts

    def _fill(self, job_id: str, text: bytes) -> None:
        try:
            with cache().use() as client:
                client.set(keys.result(job_id), text, ex=settings().result_ttl_s, nx=True)
        except StoreUnavailable:
            OUTAGES.labels("results", "not filled").inc()

    def set(self, key: Any, value: Any) -> None:
        """Write a value through to Redis with its life, and wake whoever waits for it; Postgres has it already."""
        try:
            with cache().use() as client:
                pipe = client.pipeline(transaction=False)
                pipe.set(key, value, ex=settings().result_ttl_s)
                pipe.publish(key, value)
                pipe.execute()
        except StoreUnavailable:
            OUTAGES.labels("results", "not written through").inc()

    def delete(self, key: Any) -> None:
        """Forget a key in Redis."""
        try:
            with cache().use() as client:
                client.delete(key)
        except StoreUnavailable:
            OUTAGES.labels("results", "not deleted").inc()

    def _forget(self, task_id: str) -> None:
        self.delete(keys.result(task_id))
        repeatable(lambda conn: results.forget(conn, task_id))

    # ---- waiting

    def wait_for(
        self, task_id: str, timeout: float | None = None, interval: float = 0.5, no_ack: bool = True, on_interval: Any = None
    ) -> Any:
        """Wait for a job's end: woken by Redis, and asking by itself every `interval` seconds in case nobody wakes it.

        Raises `celery.exceptions.TimeoutError` after `timeout` seconds.
        """
        self._ensure_not_eager()
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.01
        with self._watch(task_id) as wait:
            while True:
                meta = self.get_task_meta(task_id)
                if meta["status"] in states.READY_STATES:
                    return meta
                if on_interval:
                    on_interval()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError("The operation timed out.")
                wait(min(x for x in (pause, left) if x is not None))
                pause = min(pause * 2, max(interval, 0.01))

    def get_many(self, task_ids: Any, timeout: float | None = None, interval: float = 0.05, **kwargs: Any) -> Any:
        """Yield the results of many jobs as they end, asking for all that are missing in one round trip."""
        return super().get_many(task_ids, timeout=timeout, interval=min(interval, 0.05), **kwargs)

    @contextmanager
    def _watch(self, task_id: str) -> Iterator[Any]:
        try:
            pubsub = cache().pubsub()
            with cache().use():
                pubsub.subscribe(keys.result(task_id))
        except StoreUnavailable:
            yield time.sleep
            return

        def wait(seconds: float) -> None:
            until = time.monotonic() + seconds
            try:
                while (left := until - time.monotonic()) > 0:
                    with cache().use():
                        if pubsub.get_message(timeout=left) is not None:
                            return
            except StoreUnavailable:
                time.sleep(max(0.0, until - time.monotonic()))

        try:
            yield wait
        finally:
            pubsub.close()

    # ---- groups and chords, in rows

    def on_task_call(self, producer: Any, task_id: str) -> dict[str, Any]:
        """Do nothing when a task is called: results are subscribed to by those who wait."""
        return {}

    def _save_group(self, group_id: str, result: Any) -> Any:
        repeatable(lambda conn: chords.save_header(conn, group_id, _plain(result.as_tuple())))
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        header = repeatable(lambda conn: chords.read_header(conn, group_id))
        return None if header is None else {"result": result_from_tuple(header, self.app)}

    def _delete_group(self, group_id: str) -> None:
        repeatable(lambda conn: chords.forget(conn, group_id))

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """Keep the shape of a header whose results are nested; a flat one is told by its parts."""
        header = self.app.GroupResult(*header_result_args)
        if any(isinstance(result, GroupResult) for result in header.results):
            self._in_scope(lambda conn: chords.save_header(conn, header.id, _plain(header.as_tuple())))

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Keep the chord's size; should all its parts have returned already, send its body."""

        def keep(conn: psycopg.Connection[Any]) -> None:
            complete = chords.set_size(conn, group_id, chord_size)
            if complete is not None:
                self._send_body(complete)

        self._in_scope(keep)

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """Add a part to a chord that runs."""
        self._in_scope(lambda conn: chords.grow(conn, chord_id))

    def _in_scope(self, work: Any) -> None:
        """Do it in the transaction that jobs are accepted into here, or in one of its own."""
        ending, run, where = _ending.get(), current(), current_scope()
        if ending is not None:
            work(ending.conn)
        elif run is not None and run.phase is Phase.SETTLING:
            work(run.connection())
        elif isinstance(where, SessionScope):
            conn = where.connection()
            with self._within(_Ending(conn, "", Guard.waiting()), where):
                work(conn)
        else:
            self._alone(work)

    def _alone(self, work: Any) -> None:
        def transact(conn: psycopg.Connection[Any]) -> _Ending:
            with conn.transaction():
                ending = _Ending(conn, "", Guard.waiting())
                with self._within(ending, None):
                    work(conn)
            return ending

        self._tell_all(repeatable(transact))

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Count a part that returned; the last one sends the body, in the same transaction."""
        if request.group and request.id:
            encoded = self.encode_result(result, state)
            self._in_scope(lambda conn: self._return_part(conn, request, state, encoded))

    def _return_part(self, conn: psycopg.Connection[Any], request: Any, state: str, encoded: Any) -> None:
        if not request.group:
            return
        part = chords.Part(request.id, state, self._json(encoded))
        complete = chords.return_part(conn, request.group, part, request.group_index, str(self.encode(request.chord)))
        if complete is None:
            return
        if _ending.get() is not None:
            self._send_body(complete)
            return
        run = current()
        ending = _Ending(conn, "", Guard.waiting())
        with self._within(ending, run):
            self._send_body(complete)
        if run is not None:
            run.after_commit(lambda: self._tell_all(ending))

    def _send_body(self, complete: chords.Complete) -> None:
        body = maybe_signature(complete.body, app=self.app)
        ending = _ending.get()
        assert ending is not None
        try:
            body.delay(self._header_results(ending.conn, complete))
        except ChordError as exc:
            self.chord_error_from_stack(body, exc)
        except InvalidJob as exc:
            self.chord_error_from_stack(body, ChordError(f"the results cannot be sent to the body: {exc}"))

    def _header_results(self, conn: psycopg.Connection[Any], complete: chords.Complete) -> list[Any]:
        """Return the header's results in order; raises `ChordError` for the first part that did not succeed."""
        returned = {}
        for part in complete.parts:
            value = self._decoded(part.result)
            if part.status in states.PROPAGATE_STATES:
                exc = self.exception_to_python(value)
                raise _create_chord_error_with_cause(message=f"Dependency {part.task_id} raised {exc!r}", original_exc=exc)
            returned[part.task_id] = value
        if complete.header is None:
            return [returned[part.task_id] for part in complete.parts]
        return self._shaped(conn, result_from_tuple(complete.header, self.app), returned)

    def _shaped(self, conn: psycopg.Connection[Any], group: Any, returned: dict[str, Any]) -> list[Any]:
        missing = [leaf.id for leaf in _leaves(group) if leaf.id not in returned]
        if missing:
            returned |= {job_id: self._decoded(value) for job_id, value in chords.results_of(conn, missing).items()}

        def value(node: Any) -> Any:
            return [value(child) for child in node.results] if isinstance(node, GroupResult) else returned.get(node.id)

        return [value(child) for child in group.results]

    def _decoded(self, value: Any) -> Any:
        return self.decode(self.encode(value))


def _is_signalled(exc: BaseException | None) -> bool:
    """Tell whether a pool's child ends because of a signal; billiard exits with this code then."""
    return isinstance(exc, SystemExit) and isinstance(exc.code, int) and exc.code in range(-255, -191)


def _unlock(job_id: str, token: UUID | None) -> None:
    """Release the lock of an attempt that cannot do so itself, so that the next delivery is not taken for a duplicate."""
    if token is not None:
        locks.release(keys.job_lock(job_id), token.hex)


def _did_its_work(run: Run, exc: BaseException) -> bool:
    """Tell whether an attempt that ended aside keeps what it wrote: it handed on to another task, or says it succeeded."""
    handed_on = run.replaced or run.successor is not None
    return isinstance(exc, Ignore) and (handed_on or (run.manual is not None and run.manual[0] == states.SUCCESS))


def _is_final(text: Any) -> bool:
    """Tell whether a cached result is there and final. A group's has no status, and is."""
    if text is None:
        return False
    try:
        return json.loads(text).get("status", states.SUCCESS) in states.READY_STATES
    except (ValueError, AttributeError):
        return True


def _leaves(result: Any) -> Iterator[Any]:
    if isinstance(result, GroupResult):
        for child in result.results:
            yield from _leaves(child)
    else:
        yield result


def _plain(value: Any) -> Any:
    """Return tuples as lists, which is what JSON makes of them."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _is_durable(request: Any) -> bool:
    delivery = getattr(request, HEADER, None)
    return isinstance(delivery, dict) and "r" in delivery


def _parent_guard(request: Any) -> Guard:
    """Return the guard of the process whose child took this delivery."""
    return Guard.parent(node.current_id(), (request.properties or {}).get("delivery_tag", ""))


def _error_line(result: Any) -> str | None:
    if isinstance(result, dict) and "exc_type" in result:
        message = result.get("exc_message")
        return f"{result['exc_type']}: {', '.join(map(str, message)) if isinstance(message, list | tuple) else message}"
    return None


def _error_line_of(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"


def _context_of(job_id: str, message: dict[str, Any]) -> Context:
    """Return the request of a stored message, as its worker would have seen it; of an unreadable one, its id."""
    if fault_of(message, job_id) is not None:
        return Context({"id": job_id})
    args, kwargs, embed = loads(message["body"])
    return Context({**message["headers"], "args": args, "kwargs": kwargs, "properties": message["properties"],
                    "delivery_info": {}, **(embed or {})})  # fmt: skip


def _meta_of(row: results.Row) -> dict[str, Any]:
    """Return a row as Celery's result document."""
    meta: dict[str, Any] = {
        "status": results.CELERY_STATUS[row.state], "result": row.result, "traceback": row.traceback,
        "children": row.children or [], "date_done": row.finished_at and row.finished_at.isoformat(), "task_id": row.id,
    }  # fmt: skip
    if row.state == JobState.RUNNING and row.progress:
        meta.update(status="PROGRESS", result=row.progress)
    elif row.state == JobState.SCHEDULED and row.attempt:
        meta.update(status=states.RETRY)
    if meta["status"] in states.EXCEPTION_STATES and meta["result"] is None:
        kind = "TaskRevokedError" if meta["status"] == states.REVOKED else "JobFailed"
        meta["result"] = {"exc_type": kind, "exc_message": [row.error or row.state], "exc_module": "celery.exceptions"}
    if row.group_id:
        meta["group_id"] = row.group_id
    if row.parent_id:
        meta["parent_id"] = row.parent_id
    return meta
