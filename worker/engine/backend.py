"""The result backend: where Celery reports how a task ended, its job ends in Postgres."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
from celery import states
from celery.app.task import Context
from celery.exceptions import Ignore, NotRegistered, Reject, Retry, TaskRevokedError, WorkerLostError
from kombu.utils.json import loads

from worker import locks
from worker.db import is_away, statement
from worker.engine import node
from worker.engine.chording import ChordRows
from worker.engine.ending import Ending, current_ending, within
from worker.engine.run import Phase, Run, Snooze, current, leave
from worker.errors import ClaimLost, LedgerUnavailable
from worker.ledger import results, settle
from worker.ledger.accept import scope
from worker.ledger.message import HEADER, fault_of
from worker.ledger.settle import Guard, Outcome
from worker.settings import settings
from worker.states import JobState
from worker.store import keys
from worker.telemetry import SETTLED, log

logger = log(__name__)

#: How a final Celery status is called in the ledger.
_STATES = {states.SUCCESS: JobState.SUCCEEDED, states.FAILURE: JobState.FAILED, states.REVOKED: JobState.CANCELLED}

#: Told by the job's row, which knows better: a duplicate delivery reports STARTED before it is dropped.
_TOLD_BY_ROWS = (states.STARTED, states.RETRY)


class LedgerBackend(ChordRows):
    """Celery's result backend, by which attempts end: what Celery calls storing a result is the settling of a job."""

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
        kept = self._json(encoded) if keep else None
        outcome = Outcome(JobState.SUCCEEDED, result=kept, children=self.encode(children) if children else None)
        text = self._success(task_id, kept, request) if kept is not None else ""
        if request.chord:
            run.session  # noqa: B018 - the part counts in the transaction that ends the job, so there must be one
        with run.settling("succeeded") as conn:
            # A task that retried itself and returned all the same goes on; what it wrote stays.
            if run.successor is not None:
                held = settle.retry(conn, run.guard, run.successor)
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
        elif run.successor is not None:
            self._renew_standing(task_id)
        # The end of a job without a result is seen within a second: to tell it would slow each such job for hardly anybody.

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
        ending = current_ending()
        run = self._own_run(task_id, request)
        if run is not None and ending is None:
            if run.phase is Phase.OVER:
                return
            if is_away(exc):
                self._lose_run(run, f"Postgres went away while it ran: {exc}", own=not isinstance(exc, LedgerUnavailable))
            else:
                self._fail_run(run, exc, traceback, request, call_errbacks, state)
            return
        if ending is None and (isinstance(exc, NotRegistered) or _is_durable(request)):
            if isinstance(exc, ClaimLost) or is_away(exc):
                return  # The tracer's last word on an attempt that was cut off as it ended, and has been given back.
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
            ending = Ending(conn, run.claim.job_id, run.guard)
            with within(ending, run):
                super().mark_as_failure(run.claim.job_id, exc, traceback, request, True, call_errbacks, state)
            if not ending.held:
                raise ClaimLost(f"job {run.claim.job_id} is no longer this attempt's; its failure was not recorded")
        self.tell_all(ending)

    def _lose_run(self, run: Run, cause: str, *, own: bool = True) -> None:
        """Give back an attempt that was cut off: not the task's failure, unless it happens every time.

        While Postgres is away that waits; then it counts only if what was cut was the attempt's `own`.
        """
        run.end(cut_off=True)
        try:
            self.crash(run.claim.job_id, run.guard, cause)
        except LedgerUnavailable:
            run.give_back(cause, crashed=own)

    def settle_aside(self, run: Run, exc: Retry | Ignore | Reject, request: Any) -> None:
        """End an attempt that neither succeeded nor failed: retried, snoozed, replaced, rejected or ended by its task."""
        if isinstance(exc, Snooze):
            run.roll_back()
            self.snooze(run, exc.delay_s, exc.why)
            return
        error = repr(getattr(exc, "exc", None) or exc)
        job_id, most = run.claim.job_id, run.claim.max_attempts
        if isinstance(exc, Reject) and not exc.requeue:
            self.end_run(run, exc, JobState.DISCARDED, f"rejected: {exc.reason!r}")
            return
        if isinstance(exc, Retry) and run.successor is not None and most is not None and run.claim.attempt >= most:
            self.end_run(run, exc.exc or exc, JobState.DISCARDED, f"all {most} attempts used; the last: {error}")
            return
        if not _did_its_work(run, exc):
            run.undo()
        with run.settling(type(exc).__name__.lower()) as conn:
            if isinstance(exc, Reject):
                held = settle.give_back(conn, job_id, run.guard, "rejected", error=error)
            elif run.successor is not None:
                replaced = not isinstance(exc, Retry)
                held = settle.retry(conn, run.guard, run.successor, error=None if replaced else error, replaced=replaced)
            elif run.replaced:
                held = settle.await_replacement(conn, job_id, run.guard)
            else:
                held = settle.finish(conn, job_id, run.guard, self._own_outcome(run, exc))
            if not held:
                raise ClaimLost(f"job {job_id} is no longer this attempt's")
        results.status.invalidate(job_id)  # nothing of it is written through: who asks next reads the row

    def snooze(self, run: Run, delay_s: float, why: str) -> None:
        """Put a job off without an attempt, for its body has not begun or undone what it did."""
        with run.settling("snoozed") as conn:
            if not settle.snooze(conn, run.claim.job_id, run.guard, delay_s, error=why):
                raise ClaimLost(f"job {run.claim.job_id} is no longer this attempt's")
        results.status.invalidate(run.claim.job_id)

    def end_run(self, run: Run, exc: BaseException, state: JobState, error: str | None = None) -> None:
        """End a run for good in another way than its function did, with all that Celery ties to an end."""
        run.roll_back()
        run.end()
        try:
            self.end_job(run.claim.job_id, run.guard, exc, state, error)
        except LedgerUnavailable as away:
            run.give_back(f"Postgres was away when it ended: {away}", crashed=False)

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
            self.end_run(run, exc, JobState.FAILED)
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
        """End a job that was revoked: while it waits, or by its worker's parent once its process was terminated.

        Without a request it comes from a worker that was told an id by stock remote control, and may or may not have a row.
        """
        if current_ending() is not None or not (request is None or _is_durable(request)):
            super().mark_as_revoked(task_id, reason, request, store_result, state)
            return
        guard = _parent_guard(request) if request and reason == "terminated" else Guard.waiting()
        try:
            ended = self.end_job(task_id, guard, TaskRevokedError(reason), JobState.CANCELLED, f"revoked: {reason}")
        except LedgerUnavailable as away:
            logger.warning("the end of a job could not be written", job=task_id, error=str(away))
            return
        if request is None and not ended:
            super().mark_as_revoked(task_id, reason, request, store_result, state)

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
        results.status.invalidate(task_id)
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
        also: Callable[[psycopg.Connection[Any]], object] | None = None,
    ) -> bool:
        """End a job from outside its attempt, with all that Celery ties to an end: chord, chain and error callbacks.

        Tells whether the guard held; everything is one transaction, and what `also` writes is part of it.
        """
        with statement() as conn:
            with conn.transaction():
                row = conn.execute(results.LOCK.format(guard=guard.sql), {"id": task_id, **guard.values}).fetchone()
                if row is None:
                    return False
                ending = Ending(conn, task_id, guard, state)
                request = _context_of(task_id, row[0])
                with within(ending, None):
                    celery_state = states.REVOKED if state in (JobState.CANCELLED, JobState.EXPIRED) else states.FAILURE
                    ending_error = error or _error_line_of(exc)
                    self._store_ending(ending, exc, traceback, request, celery_state, ending_error)
                    if request.chord or request.chain or request.errbacks:
                        self._end_ties(ending, exc, traceback, request, celery_state)
                if also is not None:
                    also(conn)
        SETTLED.labels(state.value).inc()
        _unlock(task_id, row[1])
        self.tell_all(ending)
        return bool(ending.held)

    def _end_ties(self, ending: Ending, exc: BaseException, traceback: Any, request: Any, state: str) -> None:
        """Tell chord, chain and error callbacks of a job's end; what is none of these does not keep it from ending."""
        told, sendables = len(ending.told), len(ending.sendables)
        try:
            with ending.conn.transaction():
                if request.chord:
                    self.on_chord_part_return(request, state, exc)
                self._fail_chain(request.chain, exc, traceback, state=state)
                if request.errbacks and state == states.FAILURE:
                    self._call_task_errbacks(request, exc, traceback)
        except (psycopg.Error, LedgerUnavailable):
            raise
        except Exception:
            del ending.told[told:], ending.sendables[sendables:]
            logger.exception("what hangs on a job could not be told of its end", job=ending.job_id)

    def _store_ending(
        self, ending: Ending, exc: BaseException, traceback: Any, request: Any, state: str, error: str
    ) -> None:
        encoded = self.encode_result(exc, state)
        meta = self._meta(ending.job_id, encoded, state, traceback, request)
        assert ending.state is not None
        outcome = Outcome(ending.state, result=self.encode(encoded), error=error, traceback=traceback and str(traceback))
        ending.held = settle.finish(ending.conn, ending.job_id, ending.guard, outcome)
        ending.told.append((ending.job_id, self.encode(meta)))

    def _own_run(self, task_id: str, request: Any) -> Run | None:
        run = current()
        if run is None or run.claim.job_id != task_id or getattr(request, "is_eager", False):
            return None
        return run

    # ---- storing

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """Store what Celery reports: in the transaction that ends a job, if there is one; otherwise as news for watchers."""
        text = self.encode(self._meta(task_id, result, state, traceback, request))
        ending, run = current_ending(), current()
        if ending is not None and state in _STATES:
            self._store_in(ending, task_id, result, state, traceback, request)
            ending.told.append((task_id, text))
        elif run is not None and run.claim.job_id == task_id and run.phase is not Phase.OVER and state in _STATES:
            run.manual = (state, result)
        elif state not in _TOLD_BY_ROWS or request is None or not _is_durable(request):
            self._write_through(task_id, text)
        return result

    def _store_in(self, ending: Ending, task_id: str, result: Any, state: str, traceback: Any, request: Any) -> None:
        final = ending.state if task_id == ending.job_id and ending.state else _STATES[state]
        outcome = Outcome(
            final, result=self.encode(result), error=_error_line(result), traceback=traceback and str(traceback)
        )
        if task_id == ending.job_id:
            ending.held = settle.finish(ending.conn, task_id, ending.guard, outcome)
        elif not settle.finish(ending.conn, task_id, settle.AWAITING, outcome):
            settle.record(ending.conn, task_id, getattr(request, "task", None) or "", outcome)


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


