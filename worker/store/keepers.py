"""The thread that renews the leases a process holds, on whichever server each lives."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from dataclasses import dataclass

from worker.errors import HoldfastError
from worker.store.client import Role
from worker.store.scripts import script
from worker.telemetry import OUTAGES

#: Seconds for which a dropped lease may linger, so that many are released together.
_LINGER_S = 0.25

_release = script("lease_release")
_renew = script("lease_renew")


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that this process holds: its key, the token that proves it, its life, and the server it lives on."""

    key: str
    token: str
    ttl_ms: int
    role: Role


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
            self._forget(lease)

    def drop(self, lease: Lease) -> None:
        """Stop renewing this lease and release it soon, many in one round trip."""
        with self._lock:
            self._forget(lease)
            self._dropped.append(lease)
            if len(self._dropped) == 1:
                self._be_awake(time.monotonic() + _LINGER_S)

    def _forget(self, lease: Lease) -> None:
        held = self._held.get(lease.key)
        if held is not None and held[0].token == lease.token:  # Another lease on this key may have been taken since.
            del self._held[lease.key]

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
                with lease.role.use() as client:
                    _renew(client, [lease.key], [lease.token, lease.ttl_ms])
            except HoldfastError:  # One that cannot be renewed must not keep the others from it.
                OUTAGES.labels("lease", "not renewed").inc()
            with self._lock:
                if lease.key in self._held and self._held[lease.key][0] is lease:
                    self._held[lease.key] = (lease, now + lease.ttl_ms / 3000)

    def _release_dropped(self) -> None:
        with self._lock:
            dropped, self._dropped = self._dropped, []
        by_role = defaultdict(list)
        for lease in dropped:
            by_role[lease.role].append(lease)
        for role, leases in by_role.items():
            try:
                role.ask([_release.command([lease.key], [lease.token]) for lease in leases])
            except HoldfastError:
                OUTAGES.labels("lease", "runs out").inc(len(leases))


_keepers: dict[int, Keeper] = {}


def keeper() -> Keeper:
    """Return this process's keeper; a forked child gets its own."""
    pid = os.getpid()
    if pid not in _keepers:
        _keepers.clear()
        _keepers[pid] = Keeper()
    return _keepers[pid]
