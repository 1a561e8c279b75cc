"""Locks: leases in Redis, for efficiency; correctness comes from Postgres."""

from worker.locks.lease import release, try_acquire
from worker.store import Lease, keeper

__all__ = ["Lease", "keeper", "release", "try_acquire"]
