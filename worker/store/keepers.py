"""The thread that renews the leases a process holds, on whichever server each lives."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worker.errors import HoldfastError, StoreRefused
from worker.store.client import Role
from worker.store.scripts import Script, script
from worker.telemetry import OUTAGES

#: Seconds for which a dropped lease may linger, so that many are released together.
_LINGER_S = 0.25
#: Seconds after which a renewal that failed is tried again, if a third of the lease is not over sooner.
_AGAIN_S = 1.0
#: Seconds for which a lease that could not be released is tried again. A server that hung may have the request to take it still
#: before it, and would begin the lease when it goes on.
_INSIST_S = 60.0
#: Most leases that are released in one round trip.
_AT_ONCE = 1000
#: By how much the server's clock may run ahead of ours within a lease: a hundredth of its life and two milliseconds.
_DRIFT, _DRIFT_S = 0.01, 0.002

#: Held while an event is made.
_waits = threading.Lock()

_release = script("lease_release")
_renew = script("lease_renew")


class Loss:
    """Whether a lease was lost: the server said so, or it may have run out since it was last known to be held.

    Read like a `threading.Event`; once it was seen to happen it stays. It goes by this process's own clock, and so happens in
    time also when the server hangs, or when this process stood still for longer than the lease.
    """

    __slots__ = ("_event", "_happened", "until")

    def __init__(self, until: float) -> None:
        """Count on the lease until this moment of `time.monotonic`."""
        self.until = until
        self._happened = False
        self._event: threading.Event | None = None  # made for the first who waits: most never do, and it costs as much as a lease

    def is_set(self) -> bool:
        """Tell whether it was lost by now."""
        if not self._happened and time.monotonic() >= self.until:
            self._happened = True
        return self._happened

    def set(self) -> None:
        """Learn that it was lost."""
        self._happened = True
        if self._event is not None:
            self._event.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, `timeout` seconds at most, and tell whether it was lost."""
        with _waits:
            event = self._event = self._event or threading.Event()
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while not self.is_set() and (left := min(deadline, self.until) - time.monotonic()) > 0:
            event.wait(left)
        return self.is_set()


def counted_on(ttl_ms: int) -> float:
    """Return the seconds for which a lease can be counted on from the moment it was asked for."""
    return ttl_ms / 1000 * (1 - _DRIFT) - _DRIFT_S


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that this process holds: its key, the token that proves it, its life, and the server it lives on."""

    key: str
    token: str
    ttl_ms: int
    role: Role
    #: Who is told when it is lost; None where nobody asks.
    loss: Loss | None = None
    renewal: Script = _renew
    #: The command that gives it up, where that is not compare-and-delete.
    giving_up: tuple[Any, ...] | None = None


class Keeper:
    """The thread that renews a process's leases at a third of their life, and releases those that nobody waits for."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], tuple[Lease, float]] = {}
        #: What is to be released, with the moment at which that was first wanted.
        self._dropped: dict[tuple[str, str], tuple[Lease, float]] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._sleeps_until = 0.0
        self._thread: threading.Thread | None = None

    def add(self, lease: Lease) -> None:
        """Renew this lease until it is removed or dropped."""
        with self._lock:
            due = time.monotonic() + lease.ttl_ms / 3000
            self._held[lease.key, lease.token] = (lease, due)
            self._be_awake(due)

    def remove(self, lease: Lease) -> None:
        """Stop renewing this lease."""
        with self._lock:
            self._held.pop((lease.key, lease.token), None)

    def drop(self, lease: Lease) -> None:
        """Stop renewing this lease and release it soon, many in one round trip; while its server is away, for a minute."""
        with self._lock:
            self._held.pop((lease.key, lease.token), None)
            now = time.monotonic()
            self._dropped[lease.key, lease.token] = (lease, now)
            if len(self._dropped) == 1:
                self._be_awake(now + _LINGER_S)

    def take_back(self, lease: Lease) -> bool:
        """Do not release a lease that was dropped; tell whether that was still possible."""
        with self._lock:
            return self._dropped.pop((lease.key, lease.token), None) is not None

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
            # Woken for a lease, it sleeps on until that is due, though it be given up by then: else each would wake it.
            while self._wake.wait(max(0.01, self._sleeps_until - time.monotonic())):
                self._wake.clear()
            self._renew_due()
            self._release_dropped()

    def _renew_due(self) -> None:
        now = time.monotonic()
        with self._lock:
            due = [lease for lease, at in self._held.values() if at <= now]
        for role, leases in _by_role(due).items():
            asked_at = time.monotonic()
            for lease, held in zip(leases, _renewed(role, leases), strict=True):
                self._learn(lease, held, asked_at)

    def _learn(self, lease: Lease, held: bool | None, asked_at: float) -> None:
        """Take in whether a lease is still held; None for not known. One that is gone does not come back by renewing it."""
        if held is False and lease.loss is not None:
            lease.loss.set()
        elif held and lease.loss is not None:
            lease.loss.until = max(lease.loss.until, asked_at + counted_on(lease.ttl_ms))
        with self._lock:
            if self._held.get((lease.key, lease.token), (None,))[0] is not lease:
                return
            if held is False:
                del self._held[lease.key, lease.token]
            else:
                pause = lease.ttl_ms / 3000 if held else min(lease.ttl_ms / 3000, _AGAIN_S)
                self._held[lease.key, lease.token] = (lease, asked_at + pause)

    def _release_dropped(self) -> None:
        with self._lock:
            dropped = list(self._dropped.values())
            self._dropped = {}
        wanted_at = {(lease.key, lease.token): at for lease, at in dropped}
        for role, leases in _by_role([lease for lease, _ in dropped]).items():
            for start in range(0, len(leases), _AT_ONCE):
                self._release(role, leases[start : start + _AT_ONCE], wanted_at)

    def _release(self, role: Role, leases: Sequence[Lease], wanted_at: dict[tuple[str, str], float]) -> None:
        try:
            role.ask([lease.giving_up or _release.command([lease.key], [lease.token]) for lease in leases])
        except StoreRefused:
            OUTAGES.labels("lease", "runs out").inc(len(leases))
        except HoldfastError:
            OUTAGES.labels("lease", "released late").inc(len(leases))
            until = time.monotonic() - _INSIST_S
            with self._lock:
                for lease in leases:
                    name = (lease.key, lease.token)
                    if wanted_at[name] > until:
                        self._dropped.setdefault(name, (lease, wanted_at[name]))


def _by_role(leases: Sequence[Lease]) -> dict[Role, list[Lease]]:
    found = defaultdict(list)
    for lease in leases:
        found[lease.role].append(lease)
    return found


def _renewed(role: Role, leases: Sequence[Lease]) -> list[bool | None]:
    """Renew leases of one server in one round trip; tell of each whether it was still held, None where nobody knows."""
    commands: list[tuple[Any, ...]] = [lease.renewal.command([lease.key], [lease.token, lease.ttl_ms]) for lease in leases]
    try:
        return [bool(answer) for answer in role.ask(commands)]
    except StoreRefused:
        if len(leases) > 1:  # One that cannot be renewed must not keep the others from it.
            return [held for lease in leases for held in _renewed(role, [lease])]
    except HoldfastError:
        pass
    OUTAGES.labels("lease", "not renewed").inc(len(leases))
    return [None] * len(leases)


_keepers: dict[int, Keeper] = {}


def keeper() -> Keeper:
    """Return this process's keeper; a forked child gets its own."""
    pid = os.getpid()
    if pid not in _keepers:
        _keepers.clear()
        _keepers[pid] = Keeper()
    return _keepers[pid]
