"""Taking a lock, and waiting for it in a queue: what `Lock` and `Semaphore` have in common."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from worker.errors import LockBusy, StoreRefused, StoreUnavailable
from worker.locks.held import Held
from worker.locks.names import checked_holder, checked_name, checked_ttl_ms, checked_wait_s, new_token
from worker.locks.turns import Turn, turns
from worker.locks.verbs import keys_of, verbs_of
from worker.store import Lease, Loss, Script, coordination, counted_on, keeper
from worker.telemetry import OUTAGES

#: Longest a waiter relies on being told; then it asks. Only the death of a holder or of this process's subscription makes it
#: necessary, and whoever asks serves the whole queue.
_ASK_S = 5.0
#: Shortest pause between two questions.
_PAUSE_S = 0.05
#: Pause before a server that did not answer is asked again.
_AWAY_S = 0.25


class Answer(NamedTuple):
    """What a script said: the fencing token (0: not taken), the server's time, and when it was asked by our own clock."""

    fence: int
    server_us: int
    asked_at: float
    again_ms: int = 0


class Queued:
    """A named lock on the coordination Redis, taken by `try_acquire` or `acquire`."""

    def __init__(self, name: str, ttl_s: float, key: str, most: int, *, renew: bool, holder: str) -> None:
        self.name = checked_name(name)
        self._ttl_ms = checked_ttl_ms(ttl_s)
        self._holder = checked_holder(holder)
        self._key, self._most, self._renew = key, most, renew
        self._verbs = verbs_of(key)
        #: Tries that Redis did not answer. It may have taken the lock all the same, or do so when it goes on: the next try asks
        #: with the same token, and until then the keeper tries to give it up.
        self._unanswered: list[Lease] = []

    def try_acquire(self) -> Held | None:
        """Take it now, or return None when it is held or waited for.

        Raises `StoreUnavailable` when Redis does not answer. It may have given the lock all the same: the next try from this
        object recognises that, and without one it is given up as soon as Redis answers again.
        """
        self._refuse()
        token = self._token()
        try:
            answer = self._ask(self._verbs.take, token, self._most)
        except StoreUnavailable:
            self._unanswered.append(self._abandoned(token))
            raise
        return self._in_hand(token, answer) if answer.fence else None

    def acquire(self, wait_s: float = 0.0) -> Held:
        """Take it, after waiting in the queue for `wait_s` seconds at most; give it up by `release`, or use it in a `with`.

        An outage of Redis is waited out as well, for as long. Raises `LockBusy` when others held it all the time,
        `StoreUnavailable` when Redis did not answer at the end.
        """
        deadline = time.monotonic() + checked_wait_s(wait_s)
        if wait_s and turns().is_open:
            return self._wait(deadline, wait_s)
        try:  # to take a lock that is free, a process need not listen
            held = self.try_acquire()
        except StoreUnavailable as exc:
            if not wait_s or isinstance(exc, StoreRefused):
                raise
            held = None
        if held is None:
            if not wait_s:
                raise self._busy(wait_s)
            held = self._wait(deadline, wait_s)
        return held

    def _refuse(self) -> None:
        """Raise when this thread must not ask; a semaphore may be held several times."""

    def _token(self) -> str:
        while self._unanswered:
            try:
                lease = self._unanswered.pop()  # by one thread only: two that know the same token would both hold the lock
            except IndexError:
                break
            if keeper().take_back(lease):
                return lease.token
        return new_token(self._holder)

    def _abandoned(self, token: str) -> Lease:
        """Have a token give up what it may hold, as soon as Redis answers."""
        giving_up = self._verbs.give_up.command(keys_of(self._key), [token])
        lease = Lease(self._key, token, self._ttl_ms, coordination(), giving_up=giving_up)
        keeper().drop(lease)
        return lease

    def _wait(self, deadline: float, wait_s: float) -> Held:
        self._refuse()
        token = self._token()
        with turns().waiting(token) as turn:
            try:
                if not turns().listen(max(0.0, deadline - time.monotonic())):
                    raise StoreUnavailable("Redis (coordination) did not answer while its lock was waited for")
                held = self._queue_up(token, turn, deadline)
            except BaseException:
                self._leave_quietly(token)
                raise
        if held is None:
            raise self._busy(wait_s)
        return held

    def _queue_up(self, token: str, turn: Turn, deadline: float) -> Held | None:
        verb, away = self._verbs.queue, None
        while True:
            try:
                answer, away = self._ask(verb, token, self._most, turns().channel), None
                pause = min(_ASK_S, (answer.again_ms or self._ttl_ms) / 1000)
            except StoreRefused:
                raise
            except StoreUnavailable as exc:
                answer, away, pause = None, exc, _AWAY_S
            verb = self._verbs.ask  # also after a question that was not answered: it may have queued us up
            if answer is None or not answer.fence:
                answer = self._told(turn, answer, min(max(pause, _PAUSE_S), max(0.0, deadline - time.monotonic())))
            if answer is not None:
                return self._in_hand(token, answer)
            if time.monotonic() >= deadline:
                if away is not None:
                    raise away
                answer = self._ask(self._verbs.leave, token, turns().channel)
                return self._in_hand(token, answer) if answer.fence else None

    def _told(self, turn: Turn, queued: Answer | None, pause: float) -> Answer | None:
        """Wait to be told that it is our turn; return None when we were not, or so late that the lease may be over."""
        fence = turn.wait(pause)
        if not fence or queued is None:
            return None
        # The fencing token is the time at which the lease began. What has passed on the server since it answered us has passed
        # here since we asked, at least: so late news of a turn is known to be late.
        began = min(queued.asked_at + (fence - queued.server_us) / 1_000_000, time.monotonic())
        if began + counted_on(self._ttl_ms) <= time.monotonic():
            return None
        return Answer(fence, fence, began)

    def _ask(self, verb: Script, token: str, *args: Any) -> Answer:
        asked_at = time.monotonic()
        (answer,) = coordination().ask([verb.command(keys_of(self._key), [token, self._ttl_ms, *args])])
        return Answer(answer[0], answer[1], asked_at, *answer[2:])

    def _in_hand(self, token: str, answer: Answer) -> Held:
        loss = Loss(answer.asked_at + counted_on(self._ttl_ms))
        lease = Lease(self._key, token, self._ttl_ms, coordination(), loss, self._verbs.renew)
        return Held(self.name, lease, loss, answer.fence, renew=self._renew)

    def _leave_quietly(self, token: str) -> None:
        """Leave the queue, and pass on a turn that came meanwhile; what cannot be said now is seen to when the turn comes."""
        try:
            self._ask(self._verbs.leave, token, turns().channel)
            coordination().ask([self._verbs.give_up.command(keys_of(self._key), [token])])
        except StoreUnavailable:
            turns().abandon(token)
            self._abandoned(token)
            OUTAGES.labels("lock", "left in the queue").inc()

    def _busy(self, wait_s: float) -> LockBusy:
        waited = f" for all of {wait_s:g} s" if wait_s else ""
        return LockBusy(f"lock {self.name!r} is held by others{waited}", name=self.name)
