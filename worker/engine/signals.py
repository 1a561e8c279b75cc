"""What a worker does as it starts and stops: checks, its sign of life, and a shutdown that keeps to its time."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import psutil
import structlog
from celery import current_app, signals
from celery.exceptions import InvalidTaskError
from celery.worker import state

from worker import faults
from worker.db import check_schema, engine, statement
from worker.engine import node
from worker.engine.node import Node
from worker.engine.registry import register_tasks
from worker.errors import HoldfastError, StoreUnavailable
from worker.ledger import nodes
from worker.ledger.settle import Guard
from worker.settings import settings
from worker.states import JobState
from worker.store.client import check_policy
from worker.telemetry import log, print_lines

logger = log(__name__)

#: Seconds Celery gets to stop by itself once nothing runs any more; its pool has been seen to take thirty.
_TIDY_S = 1.0

_node: Node | None = None


@signals.after_setup_logger.connect  # type: ignore[untyped-decorator]
def _print_lines(**_: Any) -> None:
    """Have our lines printed, which Celery puts in its log, unless the tasks' modules have set up something else."""
    if not structlog.is_configured():
        print_lines()


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _check_and_register(sender: Any = None, **_: Any) -> None:
    """Refuse to start on a server that would break the promises; then tell the fleet of this worker, before its pool forks."""
    global _node
    try:
        check_schema()
        try:
            check_policy()
        except StoreUnavailable as exc:
            logger.warning("Redis is away; its policy could not be checked", error=str(exc))
        queues = list(sender.app.amqp.queues.consume_from) if sender is not None else []
        _node = Node(str(getattr(sender, "hostname", "worker")), queues, _running_here, current_app.backend.crash)
        _node.register()
        register_tasks(current_app)
        engine()  # made here, with all that has to be imported for it, and not in each child of the pool
        faults.arm(settings().fault)
    except (HoldfastError, ValueError) as exc:
        print(f"holdfast: {exc}", file=sys.stderr)
        raise SystemExit(1) from exc


def _running_here() -> set[str]:
    """Return the jobs this worker runs or is about to, by their requests: Celery forgets an id when a duplicate of it ends."""
    while True:
        try:
            return {request.id for request in (*state.active_requests, *state.reserved_requests)}
        except RuntimeError:  # The main thread has just added one.
            time.sleep(0)


@signals.task_rejected.connect  # type: ignore[untyped-decorator]
def _discard_invalid(sender: Any = None, message: Any = None, exc: Any = None, **_: Any) -> None:
    """End the job of a message that its worker cannot make a request of; it would be sent for ever."""
    job_id = (message.headers or {}).get("id")
    if job_id is None:
        return
    try:
        sender.app.backend.end_job(job_id, Guard.waiting(), exc or InvalidTaskError(), JobState.DISCARDED, f"invalid: {exc}")
    except HoldfastError as away:
        logger.warning("the end of a job could not be written", job=job_id, error=str(away))


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _start_beating(**_: Any) -> None:
    if _node is not None:
        _node.start()


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _say_goodbye(**_: Any) -> None:
    if _node is not None:
        _node.leave()


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _watch_shutdown(how: str = "Warm", exitcode: int = 0, **_: Any) -> None:
    """See to it that the worker is gone in time: running jobs get the grace, then they are handed back."""
    grace = settings().shutdown_grace_s
    if how == "Cold":
        node.start_killing()
        grace = 0.0
    # No daemon: a cold shutdown ends the main thread without a word, and what ran must be handed back all the same.
    threading.Thread(target=_last_call, args=(grace, exitcode or 0), name="holdfast-last-call", daemon=False).start()


def _last_call(grace_s: float, exitcode: int) -> None:
    deadline = time.monotonic() + grace_s
    while state.active_requests and time.monotonic() < deadline:
        time.sleep(0.05)
    if not state.active_requests:
        threading.main_thread().join(_TIDY_S)
    node.start_killing()
    for child in psutil.Process().children(recursive=True):
        child.kill()
    _hand_back()
    if _node is not None:
        _node.leave()
    os._exit(exitcode)


def _hand_back() -> None:
    if _node is None:
        return
    try:
        with statement() as conn:
            handed = nodes.give_back_all(conn, _node.id)
    except HoldfastError as exc:
        logger.warning("jobs could not be handed back; they are rescued later", error=str(exc))
        return
    if handed:
        logger.warning("jobs were handed back", jobs=len(handed))
