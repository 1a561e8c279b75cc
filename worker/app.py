"""The Celery application: `celery -A worker.app worker`, and what services import to enqueue."""

from __future__ import annotations

from typing import Any

from kombu.entity import Queue

from worker.cache import set_refresher
from worker.cache.declared import LEASE_S
from worker.engine import signals as _signals
from worker.engine.application import Holdfast
from worker.engine.bulk import enqueue_many
from worker.engine.steps import PoolWatch
from worker.ledger import enqueue_in
from worker.settings import read_settings

__all__ = ["app", "enqueue_in", "enqueue_many"]


def defaults() -> dict[str, Any]:
    """Return the base configuration; what a team sets on `app.conf` wins, before or after.

    Nothing here needs the servers to be known: looking at a task, as pytest does with what it collects, is a use already.
    """
    conf = read_settings()
    return {
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # No copies of unacknowledged messages in Redis: the row is the record.
        "broker_transport_options": {
            "ack_emulation": False, "socket_timeout": 5, "socket_connect_timeout": 3, "socket_keepalive": True,
            "health_check_interval": 15, "client_name": "holdfast-broker",
        },
        "task_queues": [Queue(name) for name in conf.queues],
        "task_default_queue": conf.queues[0],
        "task_create_missing_queues": False,
        "task_serializer": "json", "result_serializer": "json", "accept_content": ["json"],
        # A message is let go of when its job has ended, so a worker takes no more than it runs, and none waits behind a long one;
        # but for those that its pool takes ahead for a moment.
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        "worker_pool": "worker.engine.prefork:TaskPool", "worker_pool_putlocks": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "result_expires": conf.result_ttl_s,
        "beat_scheduler": "worker.engine.beat:LedgerScheduler",
        "timezone": "UTC",
    }  # fmt: skip


_OURS = (
    "worker.tasks.boards", "worker.tasks.bulk", "worker.tasks.cache", "worker.tasks.http", "worker.tasks.llm",
    "worker.tasks.maintenance", "worker.tasks.webhooks",
)  # fmt: skip

app = Holdfast("holdfast", include=[*_OURS, *read_settings().include])
app.add_defaults(defaults)
app.steps["worker"].add(PoolWatch)


def _refresh_by_job(name: str, args: list[Any], token: str) -> None:
    """Send what refreshes a cached value; its next reader sends another when no worker got to it within the usual lease."""
    app.send_task("cache.refresh", (name, args, token), durable=False, expires=LEASE_S)


set_refresher(_refresh_by_job)
_ = _signals
