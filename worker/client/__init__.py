"""The Python client: jobs over HTTP, for services that have neither Celery nor Postgres."""

from worker.client.aio import AsyncClient
from worker.client.forms import Call, Event, Filters, Job, Options
from worker.client.sync import Client

__all__ = [
    # clients
    "AsyncClient", "Client",
    # what goes in
    "Call", "Filters", "Options",
    # what comes out
    "Event", "Job",
]  # fmt: skip
