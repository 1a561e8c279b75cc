"""A lease in Redis: `SET key token NX PX`, renewed by the process's keeper, released by compare-and-delete."""

from __future__ import annotations

from worker.errors import StoreUnavailable
from worker.store import Lease, Role, coordination, script
from worker.telemetry import OUTAGES

_release = script("lease_release")
_renew = script("lease_renew")


def taken(key: str, token: str, ttl_ms: int, *, fresh: bool) -> Lease | None:
    """Return the lease that was taken for this token elsewhere: as it is while `fresh`, else begun anew if it still holds.

    Raises `StoreUnavailable`.
    """
    role = coordination()
    if not fresh and not role.ask([_renew.command([key], [token, ttl_ms])])[0]:
        return None
    return Lease(key, token, ttl_ms, role)


def try_acquire(key: str, token: str, ttl_ms: int) -> Lease | None:
    """Take the lease, or return None when another token holds it. The same token takes it again.

    Raises `StoreUnavailable` when Redis is away: the caller's policy decides what that means.

    **Guarantee:** at most one token holds the key for `ttl_ms` of the server's clock. It is lost when Redis restarts without a
    disk or fails over: never let correctness hang on it.
    """
    role = coordination()
    with role.use() as client:
        taken = client.execute_command("SET", key, token, "NX", "PX", ttl_ms)  # as client.set(), in two thirds of its time
        if not taken and client.get(key) != token.encode():
            return None
    return Lease(key, token, ttl_ms, role)


def release(key: str, token: str, role: Role | None = None) -> None:
    """Give the lease up, if it is still this token's; when Redis is away it runs out by itself, which is counted."""
    try:
        with (role or coordination()).use() as client:
            _release(client, [key], [token])
    except StoreUnavailable:
        OUTAGES.labels("lease", "runs out").inc()
