"""Many calls of one task at once: one COPY, one commit, one publish a window."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from worker.engine.calls import form_of, job_of
from worker.engine.options import check_options, checked_priority
from worker.engine.task import Task
from worker.errors import InvalidJob
from worker.ledger.accept import copy_jobs


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
    check_options({"caller": caller})
    form = form_of(task.app, task, queue)
    _check_own(form.task, form.options)
    rank = checked_priority(form.options.get("priority") if priority is None else priority)
    jobs = []
    for index, row in enumerate(rows):
        args, kwargs = _call(index, row)
        jobs.append(job_of(form, args, kwargs, where=f", row {index}", priority=rank, caller=caller))
    return copy_jobs(jobs) if jobs else []


def _check_own(task: Task, own: Mapping[str, Any]) -> None:
    """Raise `InvalidJob` for a task that brings along what must be looked at call by call."""
    if not task.durable or task.unique_for is not None or "expires" in own:
        raise InvalidJob(f"{task.name}: enqueue_many takes no task with durable=False, unique_for or expires; use apply_async")


def _call(index: int, row: Sequence[Any] | Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(row, Mapping):
        return (), dict(row)
    if isinstance(row, Sequence) and not isinstance(row, str | bytes):
        return tuple(row), {}
    raise InvalidJob(f"row {index}: {row!r} is neither a sequence of arguments nor a mapping of them by name")
