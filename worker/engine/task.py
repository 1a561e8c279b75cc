"""The base class of tasks: it locks and claims a job before it runs, and gives the task its session and its progress."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn
from uuid import UUID, uuid4

from celery import Task as CeleryTask
from celery.exceptions import Ignore, Reject, Retry

from worker import faults, locks
from worker.db import raw, session, statement
from worker.engine import gating, locking, node
from worker.engine.ahead import Overdue
from worker.engine.options import LONGEST
from worker.engine.run import Phase, Run, Snooze, current, enter
from worker.errors import InvalidJob, InvalidLimit, LedgerUnavailable, NotInJob, StoreUnavailable
from worker.ledger import enqueue_in, flags, lines, progress
from worker.ledger.claim import Claim, try_claim
from worker.ledger.flags import Held
from worker.ledger.message import DOOR, HEADER
from worker.settings import settings
from worker.store import keys
from worker.telemetry import DROPPED, OUTAGES, log

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

logger = log(__name__)

#: Seconds between two writes of a job's progress: people do not read faster.
_PROGRESS_S = 0.5

#: Longest text of arguments that is kept as it is in a unique key.
_KEY_TEXT = 100

#: Seconds after which a lock that is held is tried once more. A stale copy of the message holds it for the moment until its claim
#: fails; the job's real delivery, dropped for that, would wait for the audit.
_LOCK_AGAIN_S = 0.02

_ONCE = "INSERT INTO effects (job_id, name) VALUES (%s, %s) ON CONFLICT DO NOTHING RETURNING name"


def _signature_of(task: type[Task]) -> inspect.Signature:
    """Return what a task is called with, without the task itself."""
    signature = inspect.signature(task.run)
    if isinstance(inspect.getattr_static(task, "run"), staticmethod):
        return signature
    return signature.replace(parameters=list(signature.parameters.values())[1:])


class Task(CeleryTask):  # type: ignore[misc]
    """A Celery task whose calls are durable jobs.

    Beside Celery's, a task takes these options:

    - `durable` (True): False makes it plain Celery, without a row.
    - `unique_for` (seconds or None): at most one active job per key, for at most this long; `unique_on` names the arguments
      that make the key (all of them by default). A call that meets an active one returns that job.
    - `max_attempts` (None): attempts, of whatever outcome, after which the job is not tried again.
    - `limits` (()): limits its jobs keep to, as `"host:{kwargs[host]} 10/second"`: a name, a template, a rate and perhaps what
      to do while Redis is away. A job that is not admitted waits in Postgres, in its place, without an attempt.
    - `lock` (None): a template such as `"report:{args[0]}"` that names a lock under which the body runs; `lock_backend`:
      `"redis"`, a lease whose loss puts the job back, or `"postgres"`, held by the transaction of `self.session`; `on_busy`: what
      a job does that finds it held. `"snooze"` tries again later without an attempt, `"wait"` waits in its turn for `lock_wait_s`
      (30 s) and then snoozes, `"skip"` cancels it.
    """

    Request = "worker.engine.request:LedgerRequest"

    durable: bool = True
    unique_for: float | None = None
    unique_on: Sequence[str] | Callable[..., str] | None = None
    max_attempts: int | None = None
    limits: Sequence[str] = ()
    lock: str | None = None
    lock_backend: locking.Backend = "redis"
    on_busy: locking.OnBusy = "snooze"
    lock_wait_s: float = 30.0

    _user_before_start: ClassVar[Callable[..., None] | None] = None

    # ---- enqueueing

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Enqueue a call; see `Holdfast.send_task` for the options beside Celery's."""
        options.setdefault("durable", self.durable)
        if not options["durable"] and (self.limits or self.lock is not None):
            raise InvalidJob(f"{self.name}: durable=False: a call that is limited or takes a lock may have to wait, as a row")
        if self.max_attempts is not None:
            options.setdefault("max_attempts", self.max_attempts)
        if self.unique_for is not None and self.durable and not self._continues_itself(options):
            options.setdefault("unique_key", self.unique_key(args or (), kwargs or {}))
            options.setdefault("unique_for_s", float(self.unique_for))
        return super().apply_async(args, kwargs, **options)

    def _continues_itself(self, options: dict[str, Any]) -> bool:
        run = current()
        return run is not None and options.get("task_id") == run.claim.job_id

    def unique_key(self, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
        """Return the key of which one call at a time is active, by `unique_on`. Raises `InvalidJob`."""
        unique_on = type(self).unique_on  # read from the class: a function would be bound to the task
        if callable(unique_on):
            try:
                return f"{self.name}:{unique_on(*args, **kwargs)}"
            except Exception as exc:  # Its own code, on arguments of whoever calls: they are what is wrong.
                raise InvalidJob(f"{self.name}: unique_on cannot name this call: {exc!r}") from exc
        try:
            bound = inspect.signature(self.run).bind(*args, **kwargs)
        except TypeError as exc:
            raise InvalidJob(f"{self.name}: {exc}") from exc
        bound.apply_defaults()
        named = bound.arguments if unique_on is None else {name: bound.arguments.get(name) for name in unique_on}
        return self.unique_key_of(json.dumps(named, sort_keys=True, default=str))

    def unique_key_of(self, text: str) -> str:
        """Return the key for what a call is told apart by."""
        # Long arguments by their digest, which stays when a long name is cut: an index entry has its limits.
        key = text if len(text) <= _KEY_TEXT else hashlib.sha256(text.encode()).hexdigest()
        return f"{self.name[: LONGEST - len(key) - 1]}:{key}"

    # ---- running

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Declare its limits; put its own `before_start` behind the claim, for a dropped duplicate must not start anything."""
        own = cls.before_start
        if own is not CeleryTask.before_start and cls._user_before_start is None:
            cls._user_before_start = own
            cls.before_start = CeleryTask.before_start
        lines.name_arguments(cls.name, _signature_of(cls))
        if cls.limits and not cls.durable:
            raise InvalidLimit(f"{cls.name}: limits: a task that is not durable cannot wait; use limits.Limiter in its body")
        if cls.limits:
            lines.declare(cls.name, cls.limits)
        if cls.lock is not None:
            locking.check(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body: in a worker as a claimed attempt, elsewhere as a plain function."""
        request = self.request
        if request.called_directly:
            return super().__call__(*args, **kwargs)
        delivery = request.get(HEADER)
        if isinstance(delivery, dict) and time.monotonic() > delivery.get("u", math.inf):
            raise Overdue
        if request.is_eager or not isinstance(delivery, dict) or "r" not in delivery:
            self._start(args, kwargs)
            return self.run(*args, **kwargs)
        run = self._begin(request, delivery)
        if self.lock is not None:
            locking.take(self, run, args, kwargs)
        self._start(args, kwargs)
        try:
            return self._finish_body(run, self.run(*args, **kwargs))
        except (Retry, Ignore, Reject) as exc:
            self.backend.settle_aside(run, exc, request)
            raise

    def _start(self, args: Any, kwargs: Any) -> None:
        if self._user_before_start is not None:
            self._user_before_start(self.request.id, args, kwargs)

    def _finish_body(self, run: Run, result: Any) -> Any:
        if run.lock is not None and run.lock.lost.is_set():
            raise Reject(f"lock {run.lock.name!r} was lost while it ran", requeue=True)
        # What the tracer sends next, callbacks and the rest of a chain, belongs to the end of this attempt.
        run.begin()
        faults.point(faults.BEFORE_SETTLE)
        return result

    def _begin(self, request: Any, delivery: dict[str, Any]) -> Run:
        """Lock and claim the job, or raise `Ignore`: this delivery has nothing to run."""
        revision, line, lease = delivery["r"], delivery.get("g"), None
        token = UUID(delivery["l"]) if "l" in delivery else uuid4()
        try:
            lease = self._lock(request.id, token, delivery.get("p"))
        except StoreUnavailable:
            OUTAGES.labels("job lock", "claim alone").inc()
        if flags.switches() is not None:
            self._heed_switches(request, revision, lease)
        admitted, slot = gating.admit(request.id, revision, line) if line or self.limits else (True, None)
        if not admitted:
            self._drop("not admitted", lease)
        faults.point(faults.AFTER_LOCK)
        claim = self._claim(request, revision, token)
        if claim is None:
            # Its slot is left to run out: whoever runs the job in this moment holds it under the same name.
            self._drop("not claimable", lease)
        faults.point(faults.AFTER_CLAIM)
        run = Run(claim, self.backend.crash, lease=lease, slot=slot)
        if lease:
            locks.keeper().add(lease)
        if slot:
            slot.keep()
        enter(run)
        if claim.expires_at:
            request.expires = claim.expires_at.isoformat()
        return run

    def _heed_switches(self, request: Any, revision: int, lease: locks.Lease | None) -> None:
        """Let a job wait on that a switch holds back, without an attempt, and raise `Ignore`."""
        queue = (request.delivery_info or {}).get("routing_key") or ""
        job = Held(request.id, self.name, queue, door=request.get(DOOR))
        try:
            if not flags.try_park(job, revision):
                return
        except LedgerUnavailable:
            # The row stays queued; the audit sends it again once Postgres is back.
            OUTAGES.labels("ledger", "job left queued").inc()
        self._drop("switched off", lease)

    def _lock(self, job_id: str, token: UUID, taken_at: float | None) -> locks.Lease:
        """Take the job's lock, or raise `Ignore`: another delivery of it is running.

        One that came with the message, `taken_at` a moment ago, is in hand.
        """
        key, ttl_ms = keys.job_lock(job_id), int(settings().lease_s * 1000)
        lease = None
        if taken_at is not None:
            fresh = 0 <= time.monotonic() - taken_at < settings().lease_s / 3  # its first renewal comes in time then
            lease = locks.taken(key, token.hex, ttl_ms, fresh=fresh)
        lease = lease or locks.try_acquire(key, token.hex, ttl_ms)
        if lease is None:
            time.sleep(_LOCK_AGAIN_S)
            lease = locks.try_acquire(key, token.hex, ttl_ms)
        if lease is None:
            self._drop("locked")
        return lease

    def _claim(self, request: Any, revision: int, token: UUID) -> Claim | None:
        tag = (request.properties or {}).get("delivery_tag", "")
        try:
            return try_claim(request.id, revision, token=token, worker_id=node.current_id(), delivery_tag=tag)
        except LedgerUnavailable:
            # The row stays queued; the audit sends it again once Postgres is back.
            OUTAGES.labels("ledger", "job left queued").inc()
            return None

    def _drop(self, reason: str, lease: locks.Lease | None = None) -> NoReturn:
        if lease is not None:
            locks.release(lease.key, lease.token)
        DROPPED.labels(reason).inc()
        raise Ignore(f"delivery dropped: {reason}")

    # ---- what a running job may use

    def _run(self, what: str) -> Run:
        run = current()
        if run is None or run.phase is Phase.OVER or run.claim.job_id != self.request.id:
            raise NotInJob(f"{what} is available only inside a running durable job")
        return run

    @property
    def session(self) -> Session:
        """The SQLAlchemy session that commits together with this job's success, and rolls back with anything else.

        **Guarantee:** what is written through it takes effect exactly once, however often the job is delivered or its worker
        dies.
        """
        return self._run("self.session").session

    def once(self, name: str) -> bool:
        """Record a named effect of this job in its session; tell whether it is new.

            if self.once("invoice"):
                self.session.add(Invoice(...))

        It is recorded if and only if the job succeeds, and stays on record when the job is replayed.
        """
        run = self._run("self.once()")
        return raw(run.session).execute(_ONCE, (run.claim.job_id, name)).fetchone() is not None

    def snooze(self, delay_s: float, why: str) -> NoReturn:
        """Put this job off for so many seconds, as if it had not been tried: what it wrote is rolled back, no attempt counts.

        For a job that has found out that it cannot do its work yet; `why` is told with its state meanwhile.
        """
        self._run("self.snooze()")
        raise Snooze(delay_s, why)

    @property
    def held_lock(self) -> locks.Held | None:
        """The lock this job runs under, for its `fence` and its `lost`; None without one, and with one of Postgres."""
        return self._run("self.held_lock").lock

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Tell how far the job is; visible at once to whoever asks for its state, written at most twice a second."""
        run = self._run("self.progress()")
        now = time.monotonic()
        if now - run.progressed_at < _PROGRESS_S and done != total:
            return
        run.progressed_at = now
        told = {"done": done, "total": total, "note": note}
        with statement() as conn:
            progress.write(conn, run.claim, told)
        self.backend.tell(self.request.id, "PROGRESS", told)

    @property
    def cancelled(self) -> bool:
        """Whether somebody has asked this running job to stop, or it is no longer its own; asked of Postgres."""
        run = self._run("self.cancelled")
        with statement() as conn:
            return progress.is_cancelled(conn, run.claim)

    def add_to_chord(self, sig: Any, lazy: bool = False) -> Any:
        """Add a task to the chord this job is part of, as Celery does; the chord grows if and only if the task is accepted."""
        with session() as alone, alone.begin(), enqueue_in(alone):
            return super().add_to_chord(sig, lazy)

    def replace(self, sig: Any) -> Any:
        """Replace this job by a signature, as Celery does; what that sends commits together with this attempt's end."""
        run = current()
        if run is not None and run.claim.job_id == self.request.id:
            run.begin()
            run.replaced = True
        return super().replace(sig)
