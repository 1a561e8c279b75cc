"""Putting accepted jobs into Redis: under which epoch, within which window, and what happens when Redis is away."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_hex

from worker import faults
from worker.db import statement
from worker.errors import LedgerUnavailable, StoreUnavailable
from worker.ledger.message import Message, wire
from worker.ledger.queues import window_of
from worker.store import coordination, keys
from worker.telemetry import OUTAGES

#: Seconds a process trusts the epoch it last saw; an accept under an old one is only sent twice, never lost.
_EPOCH_TRUST_S = 1.0
#: Seconds for which a process leaves a full queue to the relay before it looks again.
_FULL_S = 0.5
#: Messages in one round trip.
_BATCH = 500

#: Jobs whose publishing failed are due again; the relay sends them.
_UNSENT = "UPDATE jobs SET dispatch_epoch = NULL, dispatched_at = NULL WHERE id = ANY(%s) AND state = 'queued'"

_seen_epoch: tuple[str, float] = ("", 0.0)
_full_until: dict[str, float] = {}


@dataclass(frozen=True, slots=True)
class Sendable:
    """What it takes to send a job that is committed."""

    id: str
    queue: str
    priority: int
    revision: int
    message: Message
    epoch: str
    #: When it was marked as sent, by the clock of Postgres, in milliseconds since 1970.
    sent_ms: int
    #: The line it was let out of, if any.
    gate: str | None = None


def current_epoch() -> str:
    """Return the mark of this life of the broker, setting one if it has none. Raises `StoreUnavailable`.

    It is the random key and the run of the server: a replica that took over has the key, but may lack the last messages.
    """
    global _seen_epoch
    with coordination().use() as client:
        found = client.get(keys.epoch())
        if found is None:
            client.set(keys.epoch(), token_hex(8), nx=True)
            found = client.get(keys.epoch())
    if found is None:
        raise StoreUnavailable("Redis (coordination) forgot the epoch as it was set")
    key = bytes(found).decode()  # type: ignore[arg-type]
    _seen_epoch = (f"{key}-{coordination().run_id()}", time.monotonic())
    return _seen_epoch[0]


def is_current(epoch: str) -> bool:
    """Tell whether nothing that this process sent since it asked for this epoch has met another life of the broker."""
    return _seen_epoch[0] == epoch


def epochs_for(queues: Sequence[str]) -> list[str | None]:
    """Return, for jobs by the queue of each, the epoch under which it is sent at once, or None when it is left to the relay.

    It is left when Redis is away, and when the queue's window is full: then it waits its turn in Postgres.
    """
    epochs = {queue: _epoch_for(queue) for queue in set(queues)}
    if len(queues) == 1:
        return [epochs[queues[0]]]
    left = {queue: _room_or_none(queue) if epoch else 0 for queue, epoch in epochs.items()}
    given: list[str | None] = []
    for queue in queues:
        given.append(epochs[queue] if left[queue] > 0 else None)
        left[queue] -= 1
    return given


def _epoch_for(queue: str) -> str | None:
    full_until = _full_until.get(queue)
    if full_until is not None and (time.monotonic() < full_until or _is_still_full(queue)):
        return None
    epoch, seen = _seen_epoch
    if time.monotonic() - seen < _EPOCH_TRUST_S:
        return epoch
    try:
        return current_epoch()
    except StoreUnavailable:
        OUTAGES.labels("publish", "left to the relay").inc()
        return None


def _is_still_full(queue: str) -> bool:
    if _room_or_none(queue):
        _full_until.pop(queue, None)
        return False
    _full_until[queue] = time.monotonic() + _FULL_S
    return True


def _room_or_none(queue: str) -> int:
    try:
        return room(queue, window_of(queue))
    except StoreUnavailable:
        OUTAGES.labels("publish", "left to the relay").inc()
        return 0


def room(queue: str, window: int) -> int:
    """Return how many more jobs fit the queue's window in Redis. Raises `StoreUnavailable`."""
    with coordination().use() as client:
        pipe = client.pipeline(transaction=False)
        for key in keys.queue_lists(queue):
            pipe.llen(key)
        lengths: list[int] = pipe.execute()
    return max(0, window - sum(lengths))


def publish(jobs: Sequence[Sendable]) -> bool:
    """Send committed jobs; tell whether Redis took them all. Never raises for it: what it did not take is due again.

    Publishing by hand, a queue's messages in one LPUSH, carries ten times what kombu's `Producer.batch` does.
    """
    taken = [_publish_batch(jobs[start : start + _BATCH]) for start in range(0, len(jobs), _BATCH)]
    return all(taken)


def _publish_batch(jobs: Sequence[Sendable]) -> bool:
    lists: dict[tuple[str, str], list[bytes]] = defaultdict(list)
    for job in jobs:
        payload = wire(job.message, job.queue, job.priority, job.revision, job.sent_ms, job.gate)
        lists[job.queue, keys.queue(job.queue, job.priority)].append(payload)
    try:
        with coordination().use() as client:
            pipe = client.pipeline(transaction=False)
            for (_, key), payloads in lists.items():
                pipe.lpush(key, *payloads)
            pipe.get(keys.epoch())
            *lengths, epoch = pipe.execute()
    except StoreUnavailable:
        OUTAGES.labels("publish", "left to the relay").inc()
        _take_back([job.id for job in jobs])
        return False
    faults.point(faults.AFTER_PUBLISH)
    _note(lists, lengths, epoch, jobs)
    return True


def _note(lists: dict[tuple[str, str], list[bytes]], lengths: list[int], epoch: bytes | None, jobs: Sequence[Sendable]) -> None:
    global _seen_epoch
    for (queue, _), length in zip(lists, lengths, strict=True):
        if length >= window_of(queue):
            _full_until[queue] = time.monotonic() + _FULL_S
    life = epoch.decode() if epoch else ""
    if stale := [job.id for job in jobs if job.epoch.partition("-")[0] != life]:
        _seen_epoch = ("", 0.0)
        _take_back(stale)


def _take_back(job_ids: list[str]) -> None:
    try:
        with statement() as conn:
            conn.execute(_UNSENT, (job_ids,))
    except LedgerUnavailable:
        OUTAGES.labels("ledger", "left to the audit").inc()
