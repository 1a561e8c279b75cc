"""The waiters of this process, and the one subscriber that hears whose turn it is."""

from __future__ import annotations

import os
import secrets
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from queue import Empty, SimpleQueue

from worker.errors import StoreUnavailable
from worker.locks.verbs import keys_of, verbs_of
from worker.store import coordination, keys
from worker.store.listening import Listener
from worker.telemetry import OUTAGES

#: Tokens of waiters that went without leaving the queue, which are remembered; the turn of one that is forgotten runs out.
_GONE = 1000


class Turn:
    """One waiter."""

    def __init__(self) -> None:
        self._news: SimpleQueue[int] = SimpleQueue()

    def tell(self, fence: int) -> None:
        """Tell that it is this waiter's turn, under this fencing token; 0: that it may have missed that."""
        self._news.put(fence)

    def wait(self, timeout: float) -> int:
        """Wait for news and return the fencing token; 0 for none, or to ask again."""
        try:
            return self._news.get(timeout=timeout)
        except Empty:
            return 0


class Turns:
    """Who waits in this process, by token, and what is heard on its channel."""

    def __init__(self) -> None:
        self.channel = keys.turns(secrets.token_hex(8))
        self._turns: dict[str, Turn] = {}
        self._gone: deque[str] = deque(maxlen=_GONE)
        self._lock = threading.Lock()
        self._open = threading.Event()
        self._wanted = False
        self._listener = Listener(coordination, self)

    @property
    def is_open(self) -> bool:
        """Whether this process hears whose turn it is; without that, it is taken for dead and passed over."""
        return self._open.is_set()

    def listen(self, timeout: float) -> bool:
        """Begin to hear; tell whether it does, after `timeout` seconds at most."""
        with self._lock:
            first, self._wanted = not self._wanted, True
        if first:
            self._listener.want(self.channel)
        return self._open.wait(timeout)

    @contextmanager
    def waiting(self, token: str) -> Iterator[Turn]:
        """Let a token's turn be heard within the block."""
        turn = Turn()
        with self._lock:
            self._turns[token] = turn
        try:
            yield turn
        finally:
            with self._lock:
                del self._turns[token]

    def abandon(self, token: str) -> None:
        """Pass this token's turn on if it comes: its waiter went while Redis was away, and may stand in the queue."""
        self._gone.append(token)

    def heard(self, channel: str, message: bytes) -> None:
        """Tell a waiter that it is its turn; pass on that of one who is gone."""
        fence, token, lease = message.decode().split(" ", 2)
        with self._lock:
            turn = self._turns.get(token)
        if turn is not None:
            turn.tell(int(fence))
        elif token in self._gone:
            self._pass_on(token, lease)

    def _pass_on(self, token: str, lease: str) -> None:
        try:
            coordination().ask([verbs_of(lease).give_up.command(keys_of(lease), [token])])
        except StoreUnavailable:
            OUTAGES.labels("lock", "runs out").inc()

    def listening(self, channel: str) -> None:
        """Let everybody ask again who may have missed something before this."""
        self._open.set()
        self.ask_again()

    def deaf(self) -> None:
        """Learn that turns are missed from now on; who waits asks again when they are heard again, or sooner by itself."""
        self._open.clear()

    def ask_again(self) -> None:
        """Let everybody ask whether it is their turn."""
        with self._lock:
            waiting = list(self._turns.values())
        for turn in waiting:
            turn.tell(0)


@lru_cache(maxsize=1)
def turns() -> Turns:
    """Return this process's turns; a forked child gets its own."""
    return Turns()


os.register_at_fork(after_in_child=turns.cache_clear)
