"""One thread that hears channels of one server, and tells when it hears each and when it heard none any more."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import redis

from worker.errors import HoldfastError
from worker.store.client import Role
from worker.telemetry import log

logger = log(__name__)

#: Seconds of silence after which the server is asked whether it is still there, and after which, if it says nothing, it is not.
PING_S = 1.0
#: Seconds between two attempts to reach a server that is away.
AGAIN_S = 0.25


class Ear(Protocol):
    """Who is told what a listener hears; called in the listener's thread."""

    def heard(self, channel: str, message: bytes) -> None:
        """Take a message."""

    def listening(self, channel: str) -> None:
        """Learn that from now on no message on this channel is missed."""

    def deaf(self) -> None:
        """Learn that messages are missed on all channels, until `listening` is told of each again."""


class Listener:
    """Hears channels on one connection of its own; begins with the first that is wanted.

    **Guarantee:** between `listening(channel)` and `deaf()` every message reaches the ear, unless the server went silent: that
    is noticed within two seconds.
    """

    def __init__(self, role: Callable[[], Role], ear: Ear) -> None:
        self._role, self._ear = role, ear
        self._wanted: dict[str, int] = {}
        #: Channels wanted since they were last looked at.
        self._news: set[str] = set()
        #: Channels asked for, and how many of the server's confirmations are still to come.
        self._hears: set[str] = set()
        self._pending: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._bell = (-1, -1)

    def want(self, channel: str) -> None:
        """Hear this channel, as often as wanted."""
        with self._lock:
            self._wanted[channel] = self._wanted.get(channel, 0) + 1
            self._news.add(channel)
            if self._thread is None or not self._thread.is_alive():
                if self._thread is None:
                    self._bell = os.pipe()
                    os.set_blocking(self._bell[1], False)
                self._thread = threading.Thread(target=self._run, name="holdfast-listener", daemon=True)
                self._thread.start()
            self._ring()

    def leave(self, channel: str) -> None:
        """Take back one `want`; after the last, stop hearing the channel."""
        with self._lock:
            self._wanted[channel] -= 1
            if not self._wanted[channel]:
                del self._wanted[channel]
                self._ring()

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # It is full of rings nobody has answered yet.
            os.write(self._bell[1], b"!")

    def _run(self) -> None:
        while True:
            try:
                self._listen()
            except (HoldfastError, redis.exceptions.RedisError, OSError):
                self._ear.deaf()
            except Exception:  # whatever it is: a thread that ended would leave everybody deaf who believes to hear
                logger.exception("a listener failed; it begins anew")
                self._ear.deaf()
            time.sleep(AGAIN_S)

    def _listen(self) -> None:
        client: redis.Redis = self._role().client()
        pubsub: Any = client.pubsub()
        bell = self._bell[0]
        self._hears, self._pending = set(), Counter()
        heard_at = time.monotonic()
        try:
            while True:
                self._follow_wishes(pubsub)
                ready = _readable([bell, pubsub.connection._sock.fileno()], PING_S) if self._hears else _readable([bell], None)
                if bell in ready:
                    os.read(bell, 4096)
                if not self._hears or self._drain(pubsub):
                    heard_at = time.monotonic()
                elif time.monotonic() - heard_at > 2 * PING_S:
                    raise redis.exceptions.ConnectionError("the server went silent")
                elif time.monotonic() - heard_at > PING_S:
                    pubsub.ping()
        finally:
            pubsub.close()

    def _follow_wishes(self, pubsub: Any) -> None:
        with self._lock:
            wanted = set(self._wanted)
            again = self._news & self._hears & wanted
            self._news.clear()
        for channel in again:  # left and wanted again before this looked
            if not self._pending[channel]:
                self._ear.listening(channel)
        if missing := wanted - self._hears:
            pubsub.subscribe(*missing)
            self._pending.update(missing)
        if done := self._hears - wanted:
            pubsub.unsubscribe(*done)
        self._hears = wanted

    def _drain(self, pubsub: Any) -> bool:
        """Take all that has come in, and tell whether anything had."""
        any_came = False
        while pubsub.connection.can_read(timeout=0):
            any_came = True
            message = pubsub.get_message(timeout=PING_S)  # What has begun to come in comes in whole.
            if message is None:
                continue
            if message["type"] == "message":
                self._ear.heard(message["channel"].decode(), message["data"])
            elif message["type"] == "subscribe":
                self._confirm(message["channel"].decode())
        return any_came

    def _confirm(self, channel: str) -> None:
        """Take a confirmation; only the last one counts for a channel that was left and asked for again."""
        self._pending[channel] -= 1
        if not self._pending[channel]:
            del self._pending[channel]
            if channel in self._hears:
                self._ear.listening(channel)


def _readable(descriptors: list[int], seconds: float | None) -> set[int]:
    """Return which of these have something to read, or were closed, waiting for one at most so long."""
    poller = select.poll()  # unlike `select`, it takes descriptors beyond 1023
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poller.poll(None if seconds is None else 1000 * seconds)}
