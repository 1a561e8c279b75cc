"""Many calls of one task at once: one COPY, one commit, one publish a window."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from worker.clock import uuid7
from worker.engine.amqp import encoded
from worker.engine.options import check_options, checked_priority, known_queue
from worker.engine.task import Task
from worker.errors import InvalidJob
from worker.ledger.accept import copy_jobs
from worker.ledger.message import NewJob

#: Longest text kept of a call's arguments for people to read, as Celery's own.
_REPR = 1024
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def enqueue_many(
    task: Task,
    rows: Iterable[Sequence[Any] | Mapping[str, Any]],
    *,
    queue: str | None = None,
    priority: int | None = None,
    caller: str | None = None,
) -> list[str]:
    """Enqueue one call a row (a sequence is positional arguments, a mapping keyword arguments) and return their ids in order.

    All are accepted or none: it is one transaction, or part of the caller's inside `enqueue_in`. Options that must be looked at
    call by call (idempotency, uniqueness, delays, links) are for `apply_async`. Raises `InvalidJob` that names the row.
    """
    app = task.app
    task = app.tasks[task.name]  # itself: the proxy that `@app.task` leaves looks it up for each attribute
    check_options({"caller": caller})
    own = _own_options(task)
    queue = queue or own.get("queue")
    with known_queue(app, queue):
        options = app.amqp.router.route({"queue": queue} if queue else {}, task.name)
    name = options["queue"].name
    first = app.amqp.create_task_message("", task.name, (), {}, ignore_result=task.ignore_result,
                                         time_limit=task.time_limit, soft_time_limit=task.soft_time_limit)  # fmt: skip
    rank = checked_priority(own.get("priority") if priority is None else priority)
    jobs = []
    for index, row in enumerate(rows):
        args, kwargs = _call(index, row)
        job_id = uuid7()
        args_repr, kwargs_repr = repr(args)[:_REPR], repr(kwargs)[:_REPR]
        headers = {**first.headers, "id": job_id, "root_id": job_id, "argsrepr": args_repr, "kwargsrepr": kwargs_repr}
        message = {
            "headers": headers, "properties": {"correlation_id": job_id, "reply_to": ""},
            "body": encoded(f"{task.name}, row {index}", (args, kwargs, _EMBED)),
            "content-type": "application/json", "content-encoding": "utf-8",
        }  # fmt: skip
        jobs.append(NewJob(
            id=job_id, task=task.name, queue=name, message=message, priority=rank, args=args_repr, kwargs=kwargs_repr,
            caller=caller, max_attempts=task.max_attempts, root_id=job_id, fresh=True,
        ))  # fmt: skip
    return copy_jobs(jobs) if jobs else []


def _own_options(task: Task) -> dict[str, Any]:
    """Return the options a task brings along. Raises `InvalidJob` for those that must be looked at call by call."""
    own = {name: value for name, value in task._get_exec_options().items() if value is not None}
    if not task.durable or task.unique_for is not None or "expires" in own:
        raise InvalidJob(f"{task.name}: enqueue_many takes no task with durable=False, unique_for or expires; use apply_async")
    return own


def _call(index: int, row: Sequence[Any] | Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(row, Mapping):
        return (), dict(row)
    if isinstance(row, Sequence) and not isinstance(row, str | bytes):
        return tuple(row), {}
    raise InvalidJob(f"row {index}: {row!r} is neither a sequence of arguments nor a mapping of them by name")
