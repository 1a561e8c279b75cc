"""A lease in Redis: `SET key token NX PX`, renewed by one thread a process, released by compare-and-delete."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

from worker.errors import HoldfastError, StoreUnavailable
from worker.store import Role, coordination, script
from worker.telemetry import OUTAGES

#: Seconds for which a dropped lease may linger, so that many are released together.
_LINGER_S = 0.25

_release = script("lease_release")
_renew = script("lease_renew")


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that this process holds: its key and the token that proves it."""

    key: str
    token: str
    ttl_ms: int


def try_acquire(key: str, token: str, ttl_ms: int) -> Lease | None:
    """Take the lease, or return None when another token holds it. The same token takes it again.

    Raises `StoreUnavailable` when Redis is away: the caller's policy decides what that means.

    **Guarantee:** at most one token holds the key for `ttl_ms` of the server's clock. It is lost when Redis restarts without a
    disk or fails over: never let correctness hang on it.
    """
    with coordination().use() as client:
        taken = client.execute_command("SET", key, token, "NX", "PX", ttl_ms)  # as client.set(), in two thirds of its time
        if not taken and client.get(key) != token.encode():
            return None
    return Lease(key, token, ttl_ms)


def release(key: str, token: str, role: Role | None = None) -> None:
    """Give the lease up, if it is still this token's; when Redis is away it runs out by itself, which is counted."""
    try:
        with (role or coordination()).use() as client:
            _release(client, [key], [token])
    except StoreUnavailable:
        OUTAGES.labels("lease", "runs out").inc()


class Keeper:
    """The thread that renews a process's leases at a third of their life, and releases those that nobody waits for."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Lease, float]] = {}
        self._dropped: list[Lease] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._sleeps_until = 0.0
        self._thread: threading.Thread | None = None

    def add(self, lease: Lease) -> None:
        """Renew this lease until it is removed or dropped."""
        with self._lock:
            due = time.monotonic() + lease.ttl_ms / 3000
            self._held[lease.key] = (lease, due)
            self._be_awake(due)

    def remove(self, lease: Lease) -> None:
        """Stop renewing this lease."""
        with self._lock:
            self._held.pop(lease.key, None)

    def drop(self, lease: Lease) -> None:
        """Stop renewing this lease and release it soon, many in one round trip."""
        with self._lock:
            self._held.pop(lease.key, None)
            self._dropped.append(lease)
            if len(self._dropped) == 1:
                self._be_awake(time.monotonic() + _LINGER_S)

    def _be_awake(self, due: float) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="holdfast-leases", daemon=True)
            self._thread.start()
        if due < self._sleeps_until:  # Waking it for every lease would cost more than the lease.
            self._sleeps_until = due
            self._wake.set()

    def _run(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                due = min((at for _, at in self._held.values()), default=now + 60)
                self._sleeps_until = min(due, now + _LINGER_S) if self._dropped else due
            if self._wake.wait(max(0.01, self._sleeps_until - now)):
                self._wake.clear()
                continue  # to sleep for the time that is now due
            self._renew_due()
            self._release_dropped()

    def _renew_due(self) -> None:
        now = time.monotonic()
        with self._lock:
            due = [lease for lease, at in self._held.values() if at <= now]
        for lease in due:
            try:
                with coordination().use() as client:
                    _renew(client, [lease.key], [lease.token, lease.ttl_ms])
            except HoldfastError:  # One that cannot be renewed must not keep the others from it.
                OUTAGES.labels("lease", "not renewed").inc()
            with self._lock:
                if lease.key in self._held:
                    self._held[lease.key] = (lease, now + lease.ttl_ms / 3000)

    def _release_dropped(self) -> None:
        with self._lock:
            dropped, self._dropped = self._dropped, []
        if not dropped:
            return
        try:
            with coordination().use() as client:
                pipe = client.pipeline(transaction=False)
                for lease in dropped:
                    _release(pipe, [lease.key], [lease.token])
                pipe.execute()
        except HoldfastError:
            OUTAGES.labels("lease", "runs out").inc(len(dropped))


_keepers: dict[int, Keeper] = {}


def keeper() -> Keeper:
    """Return this process's keeper; a forked child gets its own."""
    pid = os.getpid()
    if pid not in _keepers:
        _keepers.clear()
        _keepers[pid] = Keeper()
    return _keepers[pid]
