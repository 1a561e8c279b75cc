"""The lock that a task declares: taken for a claimed job before its body begins, given up when the job ends."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from random import uniform
from typing import TYPE_CHECKING, Any, Literal, get_args

from celery.exceptions import Ignore, TaskRevokedError

from worker.engine.run import Phase, Run
from worker.errors import InvalidLimit, InvalidLock, LockBusy, LockLost, StoreUnavailable
from worker.ledger import lines
from worker.limits.scope import Scope, scope
from worker.locks import AdvisoryLock, Lock
from worker.locks.names import checked_wait_s
from worker.settings import settings
from worker.states import JobState
from worker.telemetry import OUTAGES

if TYPE_CHECKING:
    from worker.engine.task import Task

#: Where the lock is kept.
Backend = Literal["redis", "postgres"]
#: What a job does that finds its lock held.
OnBusy = Literal["snooze", "wait", "skip"]

#: Characters up to which a name stays as it is; of a longer one the beginning and a digest, which tells it from others.
_LONGEST, _BEGINNING = 255, 180


def check(task: type[Task]) -> None:
    """Raise `InvalidLock` that names the first option of a task's lock that cannot be what it says."""
    _scope(task)
    for option, kind in (("lock_backend", Backend), ("on_busy", OnBusy)):
        if getattr(task, option) not in get_args(kind):
            raise InvalidLock(f"{task.name}: {option}: {getattr(task, option)!r} is none of {', '.join(get_args(kind))}")
    try:
        checked_wait_s(task.lock_wait_s)
    except InvalidLock as exc:
        raise InvalidLock(f"{task.name}: lock_{exc}") from None
    if not task.durable:
        raise InvalidLock(f"{task.name}: lock: a task that is not durable cannot be put off; use locks.Lock in its body")


def take(task: Task, run: Run, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Take the job's lock for its run, or raise `Ignore`: the job was put off, or cancelled, as `on_busy` says.

    A Redis that is away gives no locks: then the job is put off, whatever `on_busy` says. Raises `InvalidLock`, which fails the
    job, when its arguments lack what the name is made of.
    """
    name = _name_of(task, args, kwargs)
    try:
        taken = _in_postgres(task, run, name) if task.lock_backend == "postgres" else _in_redis(task, run, name)
    except StoreUnavailable:
        OUTAGES.labels("task lock", "snoozed").inc()
        _put_off(task, run, f"waits for Redis, to take lock {name!r}")
    if taken:
        return
    if task.on_busy == "skip":
        why = f"skipped: lock {name!r} is held"
        task.backend.end_run(run, TaskRevokedError(why), JobState.CANCELLED, why)
        raise Ignore(why)
    _put_off(task, run, f"waits for lock {name!r}")


def _in_redis(task: Task, run: Run, name: str) -> bool:
    lock = Lock(name, settings().lease_s, holder=f"job:{run.claim.job_id}")
    try:
        run.lock = lock.acquire(task.lock_wait_s if task.on_busy == "wait" else 0.0)
    except LockBusy:
        return False
    return True


def _in_postgres(task: Task, run: Run, name: str) -> bool:
    lock = AdvisoryLock(name)
    try:
        lock.acquire(run.session, task.lock_wait_s if task.on_busy == "wait" else 0.0)
    except LockBusy:
        return False
    from sqlalchemy import event

    event.listen(run.session, "after_begin", partial(_take_again, run, lock))
    return True


def _take_again(run: Run, lock: AdvisoryLock, session: Any, transaction: Any, connection: Any) -> None:
    """Take the lock for the next transaction of a body that rolled back: what that writes must be under it as well."""
    if run.phase is Phase.BODY and not lock.try_acquire(connection.connection.driver_connection):
        raise LockLost(f"lock {lock.name!r} went to another with the rollback of self.session", name=lock.name)


def _put_off(task: Task, run: Run, why: str) -> None:
    task.backend.snooze(run, settings().lock_snooze_s * uniform(0.5, 1.5), why)
    raise Ignore(why)


def _name_of(task: Task, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    queue = (task.request.delivery_info or {}).get("routing_key")
    name = _scope(task).key({"task": task.name, "queue": queue, **lines.arguments_of(task.name, args, kwargs)})
    if name is None:
        raise InvalidLock(f"{task.name}: its lock goes by {task.lock}, which this call does not have")
    return name if len(name) <= _LONGEST else f"{name[:_BEGINNING]}:{hashlib.sha256(name.encode()).hexdigest()}"


def _scope(task: Task | type[Task]) -> Scope:
    try:
        return scope(task.lock)
    except InvalidLimit as exc:
        raise InvalidLock(f"{task.name}: lock: {str(exc).removeprefix('scope: ')}") from None
