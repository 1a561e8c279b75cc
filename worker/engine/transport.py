"""Celery's Redis transport, hardened: nothing that lies in a queue can end a worker, and nothing is thrown away unseen."""

from __future__ import annotations

from queue import Empty
from typing import Any

import redis
from celery import current_app
from kombu.connection import Connection
from kombu.transport import redis as stock
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from models import JobState
from worker.errors import HoldfastError
from worker.ledger.message import decode, is_ours
from worker.ledger.settle import Guard
from worker.settings import settings
from worker.telemetry import DROPPED, log

logger = log(__name__)

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

    def _brpop_read(self, **options: Any) -> bool:
        try:
            try:
                popped = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            if not popped:
                raise Empty
            key, item = popped
            queue = bytes_to_str(key).rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            payload = _decoded(item)
            if payload is None:
                self._hand_over(item, queue)
            else:
                self._deliver(payload, queue)
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

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
