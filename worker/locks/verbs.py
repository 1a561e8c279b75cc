"""The scripts of locks and semaphores: the same verbs over one lease or several."""

from __future__ import annotations

from typing import NamedTuple

from worker.store import Script, keys, script


class Verbs(NamedTuple):
    """What can be asked of a lock; each script's file says what it takes and returns."""

    take: Script
    queue: Script
    ask: Script
    leave: Script
    give_up: Script
    break_: Script
    renew: Script


def _verbs(kind: str, renew: str) -> Verbs:
    def verb(name: str) -> Script:
        return script(f"{kind}+lock_turn+lock_{name}")

    return Verbs(verb("take"), verb("queue"), verb("ask"), verb("leave"), verb("pass"), verb("break"), script(renew))


ONE, MANY = _verbs("lock_one", "lease_renew"), _verbs("lock_many", "semaphore_renew")


def verbs_of(lease: str) -> Verbs:
    """Return the verbs for a lease, by its key."""
    return MANY if lease.startswith(keys.semaphore("").removesuffix("{}")) else ONE


def keys_of(lease: str) -> list[str]:
    """Return the keys that the verbs go by: the lease, its fence and its queue."""
    return [lease, keys.fence(lease), keys.waiters(lease)]
