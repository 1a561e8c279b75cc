"""Locks: leases in Redis, for efficiency; correctness comes from Postgres."""

from worker.locks.advisory import AdvisoryLock, key_of
from worker.locks.held import Held
from worker.locks.lease import release, taken, try_acquire
from worker.locks.lock import Lock
from worker.locks.peek import Holder, Picture, break_lock, list_locks, picture_of
from worker.locks.redlock import HeldRedlock, Redlock
from worker.locks.semaphore import Semaphore
from worker.store import Lease, keeper

__all__ = [
    # by name, in Redis
    "Held", "Lock", "Semaphore",
    # on several Redis servers
    "HeldRedlock", "Redlock",
    # in Postgres
    "AdvisoryLock", "key_of",
    # the bare lease, as a job's own lock is one
    "Lease", "keeper", "release", "taken", "try_acquire",
    # for people
    "Holder", "Picture", "break_lock", "list_locks", "picture_of",
]  # fmt: skip
