"""Celery's Redis transport, hardened: nothing that lies in a queue can end a worker, and nothing is thrown away unseen."""

from __future__ import annotations

import time
from queue import Empty
from typing import Any
from uuid import uuid4

import redis
from celery import current_app
from kombu.connection import Connection
from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from worker import locks
from worker.engine import ahead
from worker.errors import HoldfastError, StoreUnavailable
from worker.ledger.message import HEADER, JOB, decode, is_ours
from worker.ledger.settle import Guard
from worker.settings import settings
from worker.states import JobState
from worker.store import coordination, keys, script
from worker.telemetry import DROPPED, OUTAGES, log

logger = log(__name__)

#: Seconds after which scripts are tried again that a server refused.
_NO_SCRIPT_S = 10.0

_pop = script("queue_pop")

#: Where a message that is taken ahead of the children keeps what it takes to give it back: its list, its bytes, its lock's token.
_TAKEN = "taken"

#: Seconds between two looks for a Redis that is away: jobs wait in Postgres for its return.
_LOOK_S = 1


class _QoS(virtual.QoS):
    """How many messages a worker takes: one for each child, and ahead one more for each that will soon be free."""

    _delivered: Any
    _dirty: Any

    def can_consume(self) -> bool:
        """Tell whether one more is to be taken."""
        return not self.is_ahead() or len(self._delivered) - len(self._dirty) < self.prefetch_count + ahead.wanted()

    def is_ahead(self) -> bool:
        """Tell whether one more would be taken ahead."""
        return not super().can_consume()  # type: ignore[no-untyped-call]


class _Hardened:
    """A Redis channel that moves what is not a sound message of ours to the foreign queue, to be adopted or set aside."""

    client: Any
    connection: Any
    connection_errors: Any
    ack_emulation: bool
    sep: str
    conn_or_acquire: Any
    _queue_cycle: Any
    _flush_brpop_reauth: Any
    _in_poll: Any
    _brpop_sent_at: Any
    active_queues: Any
    _closing: bool
    qos: Any
    QoS: Any

    #: Whether the last look brought a message, so that the next may be there: then it is taken with the lock of its job.
    _more = False
    #: The token and the moment of a message that is being taken so; None while `BRPOP` waits for one.
    _asked: tuple[str, float] | None = None
    #: Until when scripts are not tried again that the server refused.
    _no_script_until = 0.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not self.ack_emulation:
            self.QoS = _QoS

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
            lock = None if payload is None else self._note(payload, key, item, locked)
            if self._closing:
                self._put_back(key, item, lock)
            elif payload is None:
                self._hand_over(item, queue)
            else:
                self._deliver(payload, queue)
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
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

    def give_back(self, message: Any) -> None:
        """Give back a message that was taken ahead, and for which no child had time."""
        self._put_back(*message._raw[_TAKEN])
        self.qos.ack(message.delivery_tag)

    def _put_back(self, key: bytes, item: bytes, lock: tuple[str, str] | None) -> None:
        """Give back what nobody takes here to the place it had, after its lock: who takes it next shall find that free.

        When Redis goes away with it, or is too full to take it back, the audit sends the job again.
        """
        if lock is not None:
            locks.release(*lock)
        try:
            with coordination().use() as client:  # the channel may be closed by now
                client.rpush(key, item)
        except StoreUnavailable as exc:
            OUTAGES.labels("transport", "message sent again").inc()
            logger.warning("a message could not be given back", error=str(exc))

    def _note(self, payload: dict[str, Any], key: bytes, item: bytes, locked: bool) -> tuple[str, str] | None:
        """Note on a message what a child needs to know of it; what it brings along itself is not believed.

        That is the token of the lock that was taken with it, which is returned with the lock's key, and until when it may wait if
        no child is free for it.
        """
        ours, lock = payload["headers"][HEADER], None
        if not isinstance(ours, dict):
            return None
        for name in ("l", "p", "u"):
            ours.pop(name, None)
        if locked and self._asked and payload.get(JOB) == payload["headers"]["id"]:
            ours["l"], ours["p"] = self._asked
            lock = keys.job_lock(payload[JOB]), self._asked[0]
        if isinstance(self.qos, _QoS) and self.qos.is_ahead():
            ours["u"] = time.monotonic() + ahead.WAIT_S
            payload[_TAKEN] = key, item, lock
        return lock

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
