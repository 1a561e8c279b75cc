"""What breaks while the demo runs, each at its part of the work."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

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
#: Seconds in which a moment is sought at which the victim has a job in hand, or a connection that works.
_PATIENCE_S = 10.0
#: Seconds of that spent at a time: the demo has other things to look at.
_TRY_S = 0.3


class Breaker:
    """Breaks things as planned; `tell` gets a line for each."""

    def __init__(self, plan: Plan, stack: Stack, tell: Callable[[str], None]) -> None:
        self._plan, self._stack, self._tell = plan, stack, tell
        self._ahead = list(plan.breaks)
        self._back_at: float | None = None
        #: Until when a moment is sought at which the worker that is to be killed has jobs in hand.
        self._hunt_until: float | None = None
        self.redis_losses = 0
        self.workers_killed = 0
        self._deeds = {Fault.FLUSH: self._flush, Fault.KILL: self._start_hunt, Fault.RESTART: self._take_redis_down}

    @property
    def finished(self) -> bool:
        """Whether everything has been broken, and what is to come back is back."""
        return not self._ahead and self._back_at is None and self._hunt_until is None

    def look(self, part: float) -> None:
        """Break what is due when this part of the jobs is done."""
        if self._back_at is not None:
            if time.monotonic() >= self._back_at:
                self._bring_redis_back()
        elif self._hunt_until is not None:
            self._hunt(self._hunt_until)
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

    def _start_hunt(self) -> None:
        self._hunt_until = time.monotonic() + _PATIENCE_S
        self._hunt(self._hunt_until)

    def _hunt(self, until: float) -> None:
        """Kill a worker with its children at a moment at which it has jobs in hand; after `until`, at any."""
        name = f"worker-{self._plan.victim}"
        pause = time.monotonic() + _TRY_S
        while (now := time.monotonic()) < pause:
            with statement() as conn:
                node = record.worker(conn, name)
                busy = node is not None and record.in_hand(conn, node[0]) > 0
            if node is not None and (busy or now > until) and self._strike(name, *node, anyhow=now > until):
                self._hunt_until = None
                return
            time.sleep(0.005)

    def _strike(self, name: str, node_id: Any, pid: int, *, anyhow: bool) -> bool:
        """Stop the worker, so that no job of it ends while they are counted, and kill it; if it has none, let it go on."""
        tree = _stopped(pid)
        time.sleep(_IN_FLIGHT_S)
        with statement() as conn:
            jobs = record.in_hand(conn, node_id)
        if not jobs and not anyhow:
            _send(tree, signal.SIGCONT)
            return False
        _send(tree, signal.SIGKILL)
        self.workers_killed += 1
        self._tell(f"SIGKILL to {name} and its {len(tree) - 1} children, with {jobs} job{'' if jobs == 1 else 's'} in hand")
        return True


def _stopped(pid: int) -> list[psutil.Process]:
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
