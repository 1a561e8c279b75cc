"""The relay: sends what is due, sends again what was lost, adopts foreign messages, rescues the jobs of dead workers, and carries
out what the cache and the budgets are still owed.

Any number may run; each round is safe beside another's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from celery.exceptions import InvalidTaskError, TaskRevokedError

from worker.cache import outbox
from worker.db import statement
from worker.engine.application import Holdfast
from worker.errors import InvalidJob, LedgerUnavailable, StoreUnavailable
from worker.ledger import accept, adopt, completing, dispatch, flags, manage, nodes, usage
from worker.ledger.adopt import Unsound
from worker.ledger.completing import Refused
from worker.ledger.flags import Held, door_of
from worker.ledger.gate import Gate
from worker.ledger.message import NewJob, fault_of, sent_ms
from worker.ledger.publish import Sendable, current_epoch, is_current, publish, room
from worker.ledger.settle import Guard
from worker.settings import settings
from worker.states import JobState
from worker.store import coordination, keys
from worker.telemetry import OUTAGES, RELAYED, log

logger = log(__name__)

T = TypeVar("T")

#: It says what the outbox may owe beside keys and tags.
_ = manage

#: Seconds between two looks for what a quick round does not see.
_EXPIRE_S = 1.0
#: The part of a window that must have run empty for the relay to go on at once. After less it rests: what workers make room for
#: meanwhile is then sent in one go, which costs a fraction of sending it in twos and threes.
_EMPTIED = 0.1
#: Seconds between two looks for what the cache is owed: with the time that is left to its writer, well below a second.
_OWED_S = 0.25
#: Seconds between two looks for what was spent and Redis has not counted.
_SPENT_S = 1.0
#: Seconds between two warnings of jobs whose task no relay knows.
_WARN_S = 60.0
#: Times as long as a look past jobs of unknown tasks took that such a look is not made again.
_STRANGE = 10
#: Seconds between two looks for jobs that a switch held back and no longer does.
_PARKED_S = 0.25
#: Seconds until a part is tried again that failed in a way nobody foresaw.
_FAILED_S = 1.0
#: Seconds until a part is tried again that Redis, away or full, did not let do its work.
_REDIS_AWAY_S = 1.0


class Relay:
    """One relay."""

    def __init__(self, app: Holdfast) -> None:
        self.app = app
        self.stopping = threading.Event()
        conf = settings()
        self._every: list[tuple[float, Callable[[], None]]] = [
            (_OWED_S, self.invalidate), (0.0, self.adopt), (_PARKED_S, self.unpark), (0.0, self.send_due),
            (_EXPIRE_S, self.expire), (min(conf.audit_after_s, 5.0) / 2, self.audit),
            (min(1.0, conf.node_dead_s / 4), self.rescue), (_SPENT_S, self.tell_spent),
        ]  # fmt: skip
        self._next = [0.0] * len(self._every)
        self._epoch = ""
        self._gate = Gate()
        self._more = False
        self._warn_from = 0.0
        #: When the rows of a queue that SQL wrote are looked at again, where those that were left are strangers.
        self._complete_from: dict[str, float] = {}
        # The workers could not beat to a Postgres that was away: judge none before they have had time to.
        self._judge_from = time.monotonic() + conf.node_dead_s

    def run(self) -> None:
        """Work until `stopping` is set; outages of either server are waited out."""
        while not self.stopping.is_set():
            busy = self.round()
            if not busy:
                self.stopping.wait(settings().relay_interval_s)

    def round(self) -> bool:
        """Do each part that is due; tell whether there may be more to do at once."""
        self._more = False
        now = time.monotonic()
        for index, (period, part) in enumerate(self._every):
            if now < self._next[index]:
                continue
            self._next[index] = now + period
            try:
                part()
            except StoreUnavailable as exc:
                # A Redis that is full answers at once: without a pause the same jobs would be marked and unmarked all the time.
                self._next[index] = now + max(period, _REDIS_AWAY_S)
                OUTAGES.labels("relay", "waits for redis").inc()
                logger.debug("Redis is away", error=str(exc))
            except LedgerUnavailable as exc:
                OUTAGES.labels("relay", "waits for postgres").inc()
                logger.warning("Postgres is away", error=str(exc))
                self._judge_from = time.monotonic() + settings().node_dead_s
                return False
            except Exception:  # One row that nobody foresaw must not keep the relay from all the others.
                self._next[index] = now + max(period, _FAILED_S)
                OUTAGES.labels("relay", "part failed").inc()
                logger.exception("a part of the relay failed and is tried again")
        return self._more

    def _each(self, items: Iterable[T], work: Callable[[T], object]) -> None:
        """Do it for each item; one that fails does not hold up those behind it."""
        for item in items:
            try:
                work(item)
            except (LedgerUnavailable, StoreUnavailable):
                raise
            except Exception:
                OUTAGES.labels("relay", "job failed").inc()
                logger.exception("the relay could not deal with a job", item=str(item)[:200])

    def _count(self, deed: str, jobs: int = 1, *, more: bool = True) -> None:
        self._more |= more
        RELAYED.labels(deed).inc(jobs)

    # ---- sending

    def send_due(self) -> None:
        """Fill each queue's window with what is due; after a loss of the broker's memory, with what it forgot."""
        epoch = current_epoch()
        if epoch != self._epoch:
            self._send_forgotten(epoch)
        with statement() as conn:
            waiting = dispatch.waiting_queues(conn)
        for queue, paused, window, limited in waiting:
            if limited:
                self._complete(queue)
            paused = paused or flags.is_queue_off(queue)
            if not paused and limited:
                self._let_through(queue, window or settings().window, epoch)
            if not paused:
                self._fill(queue, window or settings().window, epoch)

    def _send_forgotten(self, epoch: str) -> None:
        with statement() as conn:
            forgotten = dispatch.forgotten(conn, epoch)
        if forgotten:
            logger.warning("the broker lost its memory; jobs are sent again", jobs=len(forgotten))
        self._epoch = epoch

    def _fill(self, queue: str, window: int, epoch: str) -> None:
        left = room(queue, window)
        # After a loss what was just sent is due again: to go on would send the same jobs until the window is full of them.
        while left > 0 and is_current(epoch) and not self.stopping.is_set():
            with statement() as conn:
                jobs = dispatch.take_due(conn, queue, min(left, 500), epoch)
                if not jobs:
                    return
                jobs = self._gate.hold_back(conn, jobs)
            going = self._sound(jobs)
            if not publish(going):
                raise StoreUnavailable("Redis did not take what is due")
            self._count("sent", len(going), more=len(jobs) >= _EMPTIED * window)
            left -= len(jobs)

    def _complete(self, queue: str) -> None:
        """Find out what SQL could not tell of the jobs it wrote; end those that nobody could run, or that another stands for."""
        now = time.monotonic()
        if now < self._complete_from.get(queue, 0.0):
            return
        with statement() as conn:
            looked_at, refused = completing.complete(conn, queue, list(self.app.tasks), self._uniqueness)
            strange = [] if looked_at else completing.strange(conn, queue, list(self.app.tasks))
        if strange:  # Each look goes past all of them.
            self._complete_from[queue] = time.monotonic() + _STRANGE * (time.monotonic() - now)
        self._each(refused, self._refuse)
        self._count("completed", looked_at, more=looked_at >= completing.MOST)
        if strange and time.monotonic() > self._warn_from:
            self._warn_from = time.monotonic() + _WARN_S
            logger.warning("jobs wait for a relay that knows their task: name its module in HOLDFAST_INCLUDE", tasks=strange)

    def _uniqueness(self, task: str, args: list[Any], kwargs: dict[str, Any]) -> tuple[str, float] | None:
        found = self.app.tasks[task]
        return None if found.unique_for is None else (found.unique_key(args, kwargs), float(found.unique_for))

    def _refuse(self, refused: Refused) -> None:
        if refused.holder is None:
            self._discard((refused.job_id, refused.why))
        else:
            why = TaskRevokedError(refused.why)
            self.app.backend.end_job(refused.job_id, Guard.waiting(), why, JobState.CANCELLED, refused.why)

    def _let_through(self, queue: str, window: int, epoch: str) -> None:
        # Half of the room, so that limited jobs and those that nothing limits do not stand before each other.
        left = -(-room(queue, window) // 2)
        if not left:
            return
        with statement() as conn:
            jobs = self._gate.take_due(conn, queue, min(left, 500), epoch)
        if jobs and not publish(self._sound(jobs)):
            raise StoreUnavailable("Redis did not take what is due")
        self._count("let through", len(jobs), more=bool(jobs))

    def _sound(self, jobs: list[Sendable]) -> list[Sendable]:
        """Return the jobs that can be sent: those whose message cannot end here, and those that a switch holds back wait on."""
        faults = {job.id: fault for job in jobs if (fault := fault_of(job.message, job.id))}
        self._each(faults.items(), self._discard)
        return self._let_go([job for job in jobs if job.id not in faults])

    def _let_go(self, jobs: list[Sendable]) -> list[Sendable]:
        """Return the jobs that no switch holds back."""
        switches = flags.switches()
        if switches is None or not jobs:
            return jobs
        told = [(job, job.message["headers"]) for job in jobs]
        looked_at = [Held(job.id, headers["task"], job.queue, door=door_of(headers)) for job, headers in told]
        with statement() as conn:
            marks = flags.marks_of(conn, switches, looked_at)
            flags.park_unsent(conn, marks, jobs[0].epoch)
        if marks:
            self._count("parked", len(marks))
        return [job for job in jobs if job.id not in marks]

    def unpark(self) -> None:
        """Make due again what a switch held back that has been changed since."""
        with statement() as conn:
            freed = flags.unpark(conn)
        if freed:
            self._count("unparked", freed)

    def _discard(self, item: tuple[str, str]) -> None:
        job_id, fault = item
        logger.warning("a job whose message cannot be sent is set aside", job=job_id, reason=fault)
        why = InvalidTaskError(fault)
        self.app.backend.end_job(job_id, Guard.waiting(), why, JobState.DISCARDED, f"the message cannot be sent: {fault}")

    # ---- what got lost

    def audit(self) -> None:
        """Send again what was sent, is not in its queue and was claimed by nobody; and what an old broker's life still holds."""
        self._send_forgotten(current_epoch())
        after_s = settings().audit_after_s
        with statement() as conn:
            suspects = dispatch.suspects(conn, after_s)
        for queue, step in sorted({(queue, keys.bucket(priority)) for queue, priority in suspects}):
            with coordination().use() as client:
                tail = client.lindex(keys.queue(queue, step), -1)
            oldest = sent_ms(bytes(tail)) if tail is not None else None  # type: ignore[arg-type]
            if tail is not None and oldest is None:
                continue  # Something foreign is last; once it is adopted, the next round sees further.
            priorities = [p for p in range(10) if keys.bucket(p) == step]
            with statement() as conn, conn.transaction():
                lost = dispatch.lost(conn, queue, priorities, after_s, oldest)
                _unlock(lost)
            if lost:
                self._count("lost and sent again", len(lost))
                logger.info("messages were taken but not claimed; their jobs are sent again", queue=queue, jobs=len(lost))

    def expire(self) -> None:
        """End the jobs whose time is over before they ran, and those cancelled while they ran that came back to their queue."""
        with statement() as conn:
            over = dispatch.over(conn)
        self._each(over, self._end)

    def _end(self, item: tuple[str, bool]) -> None:
        job_id, cancelled = item
        state, cause = (JobState.CANCELLED, "cancelled") if cancelled else (JobState.EXPIRED, "expired before it ran")
        self.app.backend.end_job(job_id, Guard.waiting(), TaskRevokedError(state.value), state, cause)
        self._count(state.value)

    def rescue(self) -> None:
        """Queue the jobs of dead workers again."""
        if time.monotonic() < self._judge_from:
            return
        dead_s = settings().node_dead_s
        with statement() as conn:
            for name in nodes.declare_dead(conn, dead_s):
                logger.warning("a worker fell silent and is taken for dead", worker=name)
            orphans = nodes.orphans(conn, dead_s)
        self._each(orphans, self._rescue)

    def _rescue(self, item: tuple[str, UUID, str]) -> None:
        job_id, token, name = item
        if self.app.backend.crash(job_id, Guard.token(token), f"worker {name or 'unknown'} died"):
            self._count("rescued")

    # ---- the cache

    def invalidate(self) -> None:
        """Make the cache forget what changed, where the writer died before it could or the cache's Redis was away."""
        done = outbox.BATCH
        while done == outbox.BATCH and not self.stopping.is_set():
            with statement() as conn:
                done = outbox.carry_out_overdue(conn)
            if done:
                self._count("invalidated", done, more=False)

    # ---- budgets

    def tell_spent(self) -> None:
        """Have Redis count what metered calls have spent, where the caller died before it could or Redis was away."""
        with statement() as conn:
            told = usage.tell_overdue(conn)
        if told:
            self._count("spend told", told, more=False)

    # ---- foreign messages

    def adopt(self) -> None:
        """Make jobs of the messages of foreign clients; set aside what cannot be one."""
        found = adopt.peek_foreign()
        if not found:
            return
        read = [adopt.read(raw, self._knows, self._route) for _, raw in found]
        jobs = [(raw, item) for (_, raw), item in zip(found, read, strict=True) if isinstance(item, NewJob)]
        unsound = [item for item in read if isinstance(item, Unsound)] + self._accept(jobs)
        if unsound:
            with statement() as conn:
                for item in unsound:
                    logger.warning("a message was set aside", entry=adopt.set_aside(conn, item), reason=item.reason)
        adopt.take_out(found)
        self._count("adopted", len(found))

    def _accept(self, jobs: list[tuple[bytes, NewJob]]) -> list[Unsound]:
        """Accept the jobs, all at once if that goes; return the messages of those that cannot be."""
        try:
            accept([job for _, job in jobs])
            return []
        except (InvalidJob, psycopg.Error) as exc:
            if len(jobs) == 1:
                return [Unsound(jobs[0][0], f"it cannot be accepted: {exc}")]
        return [unsound for job in jobs for unsound in self._accept([job])]

    def _knows(self, task: str) -> bool:
        return task in self.app.tasks

    def _route(self, task: str) -> str:
        routed = self.app.amqp.router.route({}, task)
        queue = routed.get("queue")
        return str(queue.name) if queue is not None else self.app.conf.task_default_queue


def _unlock(job_ids: list[str]) -> None:
    """Remove the locks of jobs that nobody claimed: who took their message and died may have left one, for most of a lease."""
    if job_ids:
        with coordination().use() as client:
            client.unlink(*map(keys.job_lock, job_ids))
