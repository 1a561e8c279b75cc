"""Celery's Redis transport, hardened: nothing that lies in a queue can end a worker, and nothing is thrown away unseen."""

from __future__ import annotations

import time
from queue import Empty
from typing import Any
from uuid import uuid4

import redis
from celery import current_app
from kombu.asynchronous import Hub, get_event_loop
from kombu.connection import Connection
from kombu.transport import redis as stock
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from worker import locks
from worker.errors import HoldfastError
from worker.ledger.message import HEADER, JOB, decode, is_ours
from worker.ledger.settle import Guard
from worker.settings import settings
from worker.states import JobState
from worker.store import keys, script
from worker.telemetry import DROPPED, OUTAGES, log

logger = log(__name__)

#: Seconds after which scripts are tried again that a server refused.
_NO_SCRIPT_S = 10.0

_pop = script("queue_pop")

#: Seconds for which a message waits in hand for a child of this worker; another worker may be free.
_IN_HAND_S = 0.05

#: Seconds between two looks for a Redis that is away: jobs wait in Postgres for its return.
_LOOK_S = 1


class _Hardened:
    """A Redis channel that moves what is not a sound message of ours to the foreign queue, to be adopted or set aside."""

    client: Any
    connection: Any
    connection_errors: Any
    sep: str
    conn_or_acquire: Any
    _queue_cycle: Any
    _flush_brpop_reauth: Any
    _in_poll: Any
    _brpop_sent_at: Any
    active_queues: Any
    _closing: bool
    qos: Any

    #: Whether the last look brought a message, so that the next may be there: then it is taken with the lock of its job.
    _more = False
    #: The token and the moment of a message that is being taken so; None while `BRPOP` waits for one.
    _asked: tuple[str, float] | None = None
    #: Until when scripts are not tried again that the server refused.
    _no_script_until = 0.0
    #: What is to look after a message in hand.
    _in_hand: Any = None

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for the next message: while there are more, for one and its lock at once, which spares a child a round trip."""
        self._asked = None
        if not self._more or time.monotonic() < self._no_script_until:
            super()._brpop_start(timeout)  # type: ignore[misc]
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        lists = [keys.queue(queue, step) for step in keys.PRIORITY_STEPS for queue in queues]
        self._asked = (uuid4().hex, time.monotonic())
        self._in_poll, self._brpop_sent_at = self.client.connection, self._asked[1]
        lock = [self._asked[0], int(settings().lease_s * 1000), *keys.job_lock("\0").split("\0")]
        self.client.connection.send_command(*_pop.command(lists, lock))

    def _brpop_read(self, **options: Any) -> bool:
        try:
            key, item, locked = self._popped(**options)
            queue = bytes_to_str(key).rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            payload = _decoded(item)
            if self._closing:
                self._put_back(key, item, payload, locked)
            elif payload is None:
                self._hand_over(item, queue)
            else:
                self._note_lock(payload, locked)
                self._deliver(payload, queue)
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        self._ask_ahead()
        return True

    def _popped(self, **options: Any) -> tuple[bytes, bytes, bool]:
        """Return the list, the message, and whether its job's lock came with it. Raises `Empty`."""
        try:
            popped = self.client.parse_response(self.client.connection, "EVALSHA" if self._asked else "BRPOP", **options)
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        except redis.exceptions.ResponseError as exc:
            if self._asked is None:
                raise
            self._go_without(exc)
            raise Empty from exc
        self._more = bool(popped)
        if not popped:
            raise Empty
        key, item, *locked = popped
        return key, item, bool(locked and locked[0])

    # ---- a message in hand

    def _ask_ahead(self) -> None:
        """While all children are busy and there are more messages, have the next one come: who is free need not wait for Redis.

        kombu leaves the answer in the socket until a child is free.
        """
        loop = get_event_loop()
        if loop is None or not self._more or self._closing or self.qos.can_consume() or time.monotonic() < self._no_script_until:
            return
        self._brpop_start()
        if self._in_hand is None:
            self._in_hand = loop.call_later(_IN_HAND_S, self._look_after, loop)

    def _look_after(self, loop: Hub) -> None:
        """Put a message back that no child was free for in time: another worker may have one that is."""
        self._in_hand = None
        if self._asked is None or not self._in_poll or self._closing or self.qos.can_consume():
            return
        if time.monotonic() - self._asked[1] < _IN_HAND_S or not self.client.connection.can_read(0):
            self._in_hand = loop.call_later(_IN_HAND_S, self._look_after, loop)
            return
        try:
            key, item, locked = self._popped()
            self._put_back(key, item, _decoded(item), locked)
        except Empty:
            pass
        finally:
            self._in_poll = None

    def _put_back(self, key: bytes, item: bytes, payload: dict[str, Any] | None, locked: bool) -> None:
        """Give back what nobody takes here to the place it had, after its lock: who takes it next shall find that free.

        When Redis goes away with it, or is too full to take it back, the audit sends the job again.
        """
        if locked and self._asked and payload is not None:
            locks.release(keys.job_lock(payload["headers"]["id"]), self._asked[0])
        try:
            with self.conn_or_acquire() as client:
                client.rpush(key, item)
        except (*self.connection_errors, redis.exceptions.ResponseError) as exc:
            OUTAGES.labels("transport", "message sent again").inc()
            logger.warning("a message could not be given back", error=str(exc))

    def _note_lock(self, payload: dict[str, Any], locked: bool) -> None:
        """Hand on the token of the lock that was taken with a message; one that the message brings along is not believed."""
        ours = payload["headers"][HEADER]
        if isinstance(ours, dict):
            for name in ("l", "p"):
                ours.pop(name, None)
            if locked and self._asked and payload.get(JOB) == payload["headers"]["id"]:
                ours["l"], ours["p"] = self._asked

    def _go_without(self, exc: Exception) -> None:
        """Teach a server the script that it does not know; leave one that refuses it alone for a while."""
        if isinstance(exc, redis.exceptions.NoScriptError):
            with self.conn_or_acquire() as client:
                client.script_load(_pop.source)
            return
        self._no_script_until = time.monotonic() + _NO_SCRIPT_S
        logger.warning("Redis refuses to take messages with their locks; they are taken one after the other", error=str(exc))

    def _deliver(self, payload: dict[str, Any], queue: str) -> None:
        """Give the message to the worker; one that it stumbles over ends its job, not the worker."""
        try:
            self.connection._deliver(payload, queue)
        except self.connection_errors:
            raise
        except Exception as exc:
            logger.exception("a message could not be taken", queue=queue, job=payload["headers"]["id"])
            try:
                cause = f"its worker could not take the message: {exc!r}"
                current_app.backend.end_job(payload["headers"]["id"], Guard.waiting(), exc, JobState.DISCARDED, cause)
            except HoldfastError as away:
                logger.warning("the end of a job could not be written", error=str(away))

    def _hand_over(self, item: bytes, queue: str) -> None:
        DROPPED.labels("handed to adoption").inc()
        logger.warning("a message that is not ours is handed over for adoption", queue=queue, size=len(item))
        with self.conn_or_acquire() as client:
            client.lpush(settings().foreign_queue, item)

    def _queue_bind(self, *args: Any, **kwargs: Any) -> None:
        # Bindings are for exchanges, which jobs do not use: a Redis too full to take one must not keep a worker from working.
        try:
            super()._queue_bind(*args, **kwargs)  # type: ignore[misc]
        except redis.exceptions.OutOfMemoryError:
            logger.warning("Redis is full: a queue could not be bound to its exchange")


def _decoded(item: bytes) -> dict[str, Any] | None:
    try:
        # Celery's JSON is needed, and takes its time, only where one of its types is marked.
        payload = loads(bytes_to_str(item)) if b'"__type__"' in item else decode(item)
    except Exception:  # Bytes of a stranger can be wrong in any way: nested without end, a date that is none.
        return None
    return payload if is_ours(payload) else None


class _Channel(_Hardened, stock.Channel):
    pass


class _SentinelChannel(_Hardened, stock.SentinelChannel):
    pass


class Transport(stock.Transport):
    """The transport of ledger queues."""

    Channel = _Channel


class SentinelTransport(stock.SentinelTransport):
    """The same, by way of Sentinel."""

    Channel = _SentinelChannel


_OURS = {stock.Transport: Transport, stock.SentinelTransport: SentinelTransport}


class LedgerConnection(Connection):
    """A broker connection over the hardened transports."""

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        """Connect, looking every second for a Redis that is away; Celery would look ever more seldom, up to every 30 s."""
        every = {"interval_start": _LOOK_S, "interval_step": 0, "interval_max": _LOOK_S}
        return super().ensure_connection(*args, **{**every, **options})  # type: ignore[no-untyped-call]

    def get_transport_cls(self) -> Any:
        """Return ours for the stock one that the URL names."""
        stock_cls = super().get_transport_cls()  # type: ignore[no-untyped-call]
        return _OURS.get(stock_cls, stock_cls)
