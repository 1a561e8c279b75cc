"""The Celery application class of Holdfast: stock Celery with its extension points filled in."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from celery import Celery

from worker.clock import uuid7
from worker.engine.amqp import Batch
from worker.engine.options import check_options, is_seconds, known_queue
from worker.errors import InvalidJob
from worker.settings import settings


class Holdfast(Celery):  # type: ignore[misc]
    """A Celery application whose every accepted job is a row in Postgres before it is a message in Redis."""

    amqp_cls = "worker.engine.amqp:LedgerAMQP"
    task_cls = "worker.engine.task:Task"
    backend_cls = "worker.engine.backend:LedgerBackend"
    control_cls = "worker.engine.control:LedgerControl"

    def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
        """Return a connection to the coordination Redis, wherever that is by now; the configuration does not hold its URL."""
        return super().connection_for_read(url or settings().redis_url, **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Any:
        """Return a connection to the coordination Redis, as `connection_for_read`."""
        return super().connection_for_write(url or settings().redis_url, **options)

    def producer_or_acquire(self, producer: Any = None) -> Any:
        """Return the producer given, or a batch that is accepted in one transaction when the caller lets go of it."""
        # Celery enters what it passes on once more, for each task of a group: a batch ends where it began.
        return nullcontext(producer) if isinstance(producer, Batch) else Batch(lambda: self.producer_pool, producer)

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send a task by name, as Celery does, and return a result with the id under which the job is known.

        Beside Celery's own options it takes `idempotency_key`, `caller`, `max_attempts`, `callback_url` (told of the job's end),
        `metadata` (a JSON object kept with the job) and `durable`. Raises `InvalidJob` for
        what cannot be accepted, `IdempotencyConflict`, and `LedgerUnavailable` when Postgres is away; then nothing was accepted.
        """
        if not name or not isinstance(name, str):
            raise InvalidJob(f"task name {name!r} is not a text")
        producer = options.pop("producer", None) or options.pop("publisher", None)
        if options.get("task_id") is None:
            options.update(task_id=uuid7(), fresh=True)
        check_options(options)
        # Waiting is counted by the clock of Postgres, not by the caller's.
        for given, told in (("countdown", "delay_s"), ("expires", "expires_s")):
            if is_seconds(options.get(given)):
                options[told] = float(options[given])
        outer = isinstance(producer, Batch)
        batch = producer if outer else Batch(lambda: self.producer_pool, producer)
        with known_queue(self, options.get("queue")), nullcontext() if outer else batch:
            result = super().send_task(name, args, kwargs, producer=batch, **options)
        known = batch.known.get(result.id, result.id)
        if known != result.id:
            result = type(result)(known, backend=result.backend, app=self)
        return result
