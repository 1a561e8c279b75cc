"""Our own clients: none may repeat a command by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kombu.exceptions import OperationalError

from worker.doctor.check import Check, Severity
from worker.doctor.site import Site
from worker.errors import StoreUnavailable
from worker.store import cache, coordination, limits
from worker.store.client import Role


def _retries(site: Site) -> Iterator[str]:
    for role in (coordination(), cache(), limits()):
        if count := _of_role(role):
            yield f"the client of {role.name} tries a command {count} times more"
    site.coordination.ask("PING")  # Celery would try for seconds to reach a server that is away
    if count := _of_broker(site.app):
        yield f"Celery's client of the broker tries a command {count} times more: see broker_transport_options"


def _of_role(role: Role) -> int:
    client = role.client()
    try:
        return _of_pool(client.connection_pool)
    finally:
        client.close()


def _of_broker(app: Any) -> int:
    try:
        with app.connection_for_write() as connection:
            return _of_pool(connection.default_channel.client.connection_pool)
    except OperationalError as exc:
        raise StoreUnavailable(f"Redis (broker) did not answer: {exc}") from exc


def _of_pool(pool: Any) -> int:
    """Return how often a connection of a pool would repeat a command; one made by it and never connected tells."""
    return int(pool.make_connection().retry.get_retries())


CHECKS = (
    Check(
        "clients.retry", Severity.CRITICAL,
        "a command whose answer was late has often been done: repeated, it counts twice, sends a job twice, or finds its own "
        "lock taken",
        "remove `retry_on_timeout` and `retry` from broker_transport_options and from the query of the URLs",
        _retries,
    ),
)  # fmt: skip
