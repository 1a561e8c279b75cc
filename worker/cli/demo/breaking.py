"""What breaks while the demo runs, each at its part of the work."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import psutil

from worker.cli.demo import record
from worker.cli.demo.plan import Fault, Plan
from worker.db import statement
from worker.embedded import Stack
from worker.errors import StoreUnavailable
from worker.settings import settings
from worker.store import Role, cache, coordination, keys

#: Seconds for which the Redis that is restarted stays away: long enough to enqueue without it.
_AWAY_S = 1.5
#: Seconds in which Postgres has carried out what a worker had sent before it was stopped, a commit for instance.
_IN_FLIGHT_S = 0.1
#: Seconds to wait for a moment at which the victim has a job in hand.
_PATIENCE_S = 10.0


class Breaker:
    """Breaks things as planned; `tell` gets a line for each."""

    def __init__(self, plan: Plan, stack: Stack, tell: Callable[[str], None]) -> None:
        self._plan, self._stack, self._tell = plan, stack, tell
        self._ahead = list(plan.breaks)
        self._back_at: float | None = None
        self.redis_losses = 0
        self.workers_killed = 0
        self._deeds = {Fault.FLUSH: self._flush, Fault.KILL: self._kill_worker, Fault.RESTART: self._take_redis_down}

    @property
    def finished(self) -> bool:
        """Whether everything has been broken, and what is to come back is back."""
        return not self._ahead and self._back_at is None

    def look(self, part: float) -> None:
        """Break what is due when this part of the jobs is done."""
        if self._back_at is not None:
            if time.monotonic() >= self._back_at:
                self._bring_redis_back()
        elif self._ahead and part >= self._ahead[0].at:
            self._deeds[self._ahead.pop(0).fault]()

    def _flush(self) -> None:
        queued = _on(coordination(), lambda client: sum(client.llen(key) for key in keys.queue_lists(settings().queues[0])))
        for role in (coordination(), cache()):
            _on(role, lambda client: client.flushall())
        self.redis_losses += 1
        self._tell(f"FLUSHALL on both Redis servers; {queued:,} queued messages are gone")

    def _take_redis_down(self) -> None:
        self._stack.redis.kill()
        self._back_at = time.monotonic() + _AWAY_S
        self._tell("the Redis that holds the queues is killed, its disk lost")

    def _bring_redis_back(self) -> None:
        self._stack.redis.restart(without_disk=True)
        self._back_at = None
        self.redis_losses += 1
        self._tell("Redis is back, and empty")

    def _kill_worker(self) -> None:
        """Kill a worker with its children while it has jobs in hand: it is frozen for the look, so that none ends meanwhile."""
        name = f"worker-{self._plan.victim}"
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            with statement() as conn:
                found = record.worker(conn, name)
            tree = _frozen(found[1]) if found else []
            time.sleep(_IN_FLIGHT_S)
            with statement() as conn:
                jobs = record.in_hand(conn, found[0]) if found else 0
            if tree and (jobs or time.monotonic() > deadline):
                break
            _send(tree, signal.SIGCONT)
            time.sleep(0.02)
        _send(tree, signal.SIGKILL)
        self.workers_killed += 1
        self._tell(f"SIGKILL to {name} and its {len(tree) - 1} children, with {jobs} job{'' if jobs == 1 else 's'} in hand")


def _frozen(pid: int) -> list[psutil.Process]:
    """Stop a process and its children, and return them."""
    try:
        process = psutil.Process(pid)
        process.suspend()
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    _send(tree[1:], signal.SIGSTOP)
    return tree


def _send(processes: list[psutil.Process], what: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(what)
        except psutil.NoSuchProcess:
            pass


def _on(role: Role, work: Callable[..., int]) -> int:
    """Do it on a Redis, once more where the connection turns out to be one from before its restart."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with role.use() as client:
                return work(client)
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
