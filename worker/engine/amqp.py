"""Where Celery would publish a message, a job is accepted instead: rows first, one transaction for all that one call sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Any

from celery import signals
from celery.app.amqp import AMQP
from kombu.utils.json import JSONEncoder, loads

from worker.engine.options import checked_priority, moment_of
from worker.engine.run import current
from worker.engine.transport import LedgerConnection
from worker.errors import InvalidJob, MessageTooLarge
from worker.ledger import NewJob, accept
from worker.ledger.message import HEADER, fault_of
from worker.settings import settings

#: Celery's own JSON, which knows dates, UUIDs and decimals.
_to_json: Callable[[Any], str] = JSONEncoder().encode

#: What Celery hangs on a body: nothing, for a call that stands alone.
_ALONE = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'
_EMPTY = f"[[], {{}}, {_ALONE}]"

#: Options of `apply_async` that are ours and go into the row, not into the message.
OPTIONS = (
    "idempotency_key", "caller", "max_attempts", "unique_key", "unique_for_s", "delay_s", "expires_s", "fresh", "durable",
    "callback_url", "metadata",
)  # fmt: skip


class Batch:
    """What one call sends, collected while Celery holds it as its producer, and accepted in one transaction when it lets go.

    Everything else Celery asks of a producer is answered by a real one, borrowed only then.
    """

    serializer = "json"

    def __init__(self, pool: Callable[[], Any], given: Any = None) -> None:
        self._pool = pool
        self._given = given
        self._borrowed: Any = None
        self._jobs: list[NewJob] = []
        self._after: list[Callable[[], None]] = []
        #: The ids under which jobs are known, where they differ from those given.
        self.known: dict[str, str] = {}
        self.connection = _NoConnection()

    def add(self, job: NewJob, after: Callable[[], None]) -> None:
        """Take in a job; `after` runs when it is accepted. One with a key is accepted now, since its id may change."""
        self._jobs.append(job)
        self._after.append(after)
        if job.idempotency_key is not None or job.unique_key is not None:
            self.flush()

    def flush(self) -> None:
        """Accept what was collected."""
        jobs, after = self._jobs, self._after
        self._jobs, self._after = [], []
        if run := current():
            # A job that sends itself again goes on with that message; the row it has is not accepted twice.
            jobs = [job for job in jobs if not run.goes_on_with(job)]
        if jobs:
            for job, job_id in zip(jobs, accept(jobs), strict=True):
                self.known[job.id] = job_id
        for tell in after:
            tell()

    @property
    def real(self) -> Any:
        """The producer the caller gave, or one of Celery's pool: for messages that are not jobs."""
        if self._given is None and self._borrowed is None:
            self._borrowed = self._pool().acquire(block=True)
        return self._given or self._borrowed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            if self._borrowed is not None:
                self._borrowed.release()


class _NoConnection:
    """What `send_task` wants of a connection before it has anything to send."""

    def _reraise_as_library_errors(self) -> nullcontext[None]:
        return nullcontext()


class LedgerAMQP(AMQP):  # type: ignore[misc]
    """Celery's message factory, with a sender that accepts into the ledger."""

    Connection = LedgerConnection

    def _create_task_sender(self) -> Callable[..., Any]:
        send_plain = super()._create_task_sender()

        def send_task_message(producer: Batch, name: str, message: Any, **options: Any) -> None:
            ours = {key: options.pop(key) for key in OPTIONS if key in options}
            queue = self._queue_name(options)
            if not ours.get("durable", True) or queue is None:
                headers = {**(options.pop("headers", None) or {}), HEADER: {"durable": False}}
                send_plain(producer.real, name, message, headers=headers, **options)
                return
            producer.add(*self._job(name, message, queue, options, ours))

        return send_task_message

    def _queue_name(self, options: dict[str, Any]) -> str | None:
        """Return the queue the message is for; None for a broadcast, which is everybody's and so no job."""
        queue = options.get("queue")
        if queue is None:
            queue = options.get("routing_key") if options.get("exchange") is not None else None
            queue = queue or self.app.conf.task_default_queue
        if isinstance(queue, str):
            queue = self.queues[queue]
        if queue.exchange is not None and queue.exchange.type == "fanout":
            return None
        return str(queue.name)

    def _job(
        self, name: str, message: Any, queue: str, options: dict[str, Any], ours: dict[str, Any]
    ) -> tuple[NewJob, Callable[[], None]]:
        headers, properties, body, sent_event = message
        headers.update(options.get("headers") or {})
        priority = checked_priority(options.get("priority"))
        reply_to = {k: v for k, v in properties.items() if v}
        signals.before_task_publish.send(
            sender=name, body=body, exchange="", routing_key=queue, declare=[], headers=headers,
            properties=reply_to, retry_policy={},
        )  # fmt: skip
        stored = {
            "headers": headers, "properties": reply_to, "body": encoded(name, body, options.get("serializer")),
            "content-type": "application/json", "content-encoding": "utf-8",
        }  # fmt: skip
        if options.get("headers") and (fault := fault_of(stored, headers["id"])):
            raise InvalidJob(f"{name}: with these headers no worker could take the message: {fault}")
        job = NewJob(
            id=headers["id"], task=name, queue=queue, message=stored, priority=priority,
            args=headers["argsrepr"] or "()", kwargs=headers["kwargsrepr"] or "{}",
            available_at=None if ours.get("delay_s") else moment_of("eta", headers["eta"]),
            delay_s=ours.get("delay_s") or 0.0,
            expires_at=None if ours.get("expires_s") is not None else moment_of("expires", headers["expires"]),
            expires_s=ours.get("expires_s"),
            max_attempts=ours.get("max_attempts"), caller=ours.get("caller"),
            idempotency_key=ours.get("idempotency_key"),
            unique_key=ours.get("unique_key"), unique_for_s=ours.get("unique_for_s"),
            parent_id=headers["parent_id"], root_id=headers["root_id"], group_id=headers["group"],
            fresh=bool(ours.get("fresh")), callback_url=ours.get("callback_url"), metadata=ours.get("metadata"),
        )  # fmt: skip

        def announce() -> None:
            signals.after_task_publish.send(sender=name, body=body, headers=headers, exchange="", routing_key=queue)
            if sent_event:
                self._tell_sent(sent_event, queue)

        return job, announce

    def _tell_sent(self, sent_event: dict[str, Any], queue: str) -> None:
        sent_event.update(queue=queue, exchange="", routing_key=queue)
        # An event is for watchers; the job is accepted whether or not anybody can be told.
        try:
            with self.producer_pool.acquire(block=True) as producer:
                self._event_dispatcher.publish("task-sent", sent_event, producer, retry=False)
        except (OSError, *self.app.connection_for_write().connection_errors):
            pass


def encoded(task: str, body: Sequence[Any], serializer: str | None = None) -> str:
    """Return a message's body as JSON text. Raises `InvalidJob` that names the task, `MessageTooLarge`."""
    if serializer not in (None, "json"):
        raise InvalidJob(f"{task}: serializer {serializer!r} is not allowed; Holdfast sends JSON only")
    return _checked(task, _json(task, body))


def encoded_alone(task: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the body of a call that stands alone, as `encoded`."""
    if not args and not kwargs:
        return _EMPTY
    return _checked(task, f"{_json(task, (args, kwargs))[:-1]}, {_ALONE}]")


def _json(task: str, value: Any) -> str:
    try:
        return _to_json(value)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidJob(f"{task}: the arguments cannot be written as JSON: {exc}") from exc


def _checked(task: str, text: str) -> str:
    if '"__type__"' in text:
        _check_readable(task, text)
    if len(text) > settings().max_message_bytes:
        raise MessageTooLarge(
            f"{task}: the arguments take {len(text):,} bytes, the limit is {settings().max_message_bytes:,} "
            "(HOLDFAST_MAX_MESSAGE_BYTES); store them and pass an id",
            size=len(text),
        )
    return text


def _check_readable(task: str, text: str) -> None:
    """Raise `InvalidJob` when Celery's JSON, which marks its types this way, cannot read back what it wrote."""
    try:
        loads(text)
    except Exception as exc:
        raise InvalidJob(f'{task}: the arguments hold a "__type__" that no worker could read: {exc!r}') from exc
