"""The chaos tasks in a worker whose broker redelivers what is unacknowledged for a second."""

from __future__ import annotations

from tests.chaos.tasks import app

app.conf.broker_transport_options |= {"visibility_timeout": 1, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
