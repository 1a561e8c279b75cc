"""Locks: leases in Redis, for efficiency; correctness comes from Postgres."""

from worker.locks.lease import Lease, keeper, release, try_acquire

__all__ = ["Lease", "keeper", "release", "try_acquire"]
