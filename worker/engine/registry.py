"""Telling Postgres which tasks a process knows, so that doors without Python can check what they are given."""

from __future__ import annotations

from typing import Any

from celery import Celery

from worker.db import statement
from worker.engine.calls import form_of
from worker.engine.options import checked_priority, is_seconds
from worker.engine.schemas import names_of, positional_of, schema_of
from worker.errors import HoldfastError
from worker.ledger.message import DOOR
from worker.ledger.task_types import TaskRow, register
from worker.settings import settings
from worker.telemetry import log

logger = log(__name__)

#: Headers that differ from job to job, or are left out of the message for the row to say.
_OF_THE_JOB = ("id", "root_id", "parent_id", "argsrepr", "kwargsrepr", "eta", "expires", "group", "origin")


def register_tasks(app: Celery) -> None:
    """Write the durable tasks of an application into the registry. Raises `LedgerUnavailable`."""
    rows = []
    for name in sorted(app.tasks):
        if name.startswith("celery.") or not app.tasks[name].durable:
            continue
        try:
            rows.append(_row(app, name))
        except (HoldfastError, TypeError, ValueError) as exc:  # A task that cannot be told must not keep a worker from starting.
            logger.warning("a task is not in the registry", task=name, error=str(exc))
    with statement() as conn:
        register(conn, rows)


def _row(app: Celery, name: str) -> TaskRow:
    task, conf = app.tasks[name], settings()
    form = form_of(app, task)
    names, open_ended = positional_of(task)
    expires: Any = form.options.get("expires")
    headers = {key: value for key, value in form.headers.items() if key not in _OF_THE_JOB}
    headers[DOOR] = "sql"  # the one door that makes its messages of these
    return TaskRow(
        name, form.queue, checked_priority(form.options.get("priority")), task.max_attempts,
        float(expires) if is_seconds(expires) else None, headers, schema_of(task), names, open_ended,
        bool(task.limits or conf.limits), task.unique_for is not None,
        names_of(task), list(app.amqp.queues), conf.idempotency_ttl_s, conf.max_message_bytes,
    )  # fmt: skip
