"""`holdfast relay`: send what is due, and rescue what was lost."""

from __future__ import annotations

import signal
import threading

from worker.cli import options
from worker.cli.output import note
from worker.cli.registry import load
from worker.cli.services import check_servers, services


def relay(loglevel: options.LogLevel = None) -> None:
    """Send due jobs, send lost ones again, adopt foreign messages and rescue the jobs of dead workers; any number may run."""
    with services():
        from worker import telemetry
        from worker.db import statement
        from worker.engine.registry import register_tasks
        from worker.engine.relay import Relay
        from worker.ledger import history
        from worker.settings import settings

        app = load()
        check_servers()
        telemetry.configure(loglevel or settings().log_level, as_json=settings().log_json)
        with statement() as conn:
            history.keep_up(conn)
        register_tasks(app)
        runner = Relay(app)
        _stop_on_signal(runner.stopping)
        note("relay ready")
        runner.run()


def _stop_on_signal(stopping: threading.Event) -> None:
    # Set by a thread: a handler runs within the main thread, which may be holding the event's lock just then.
    def stop(*_: object) -> None:
        threading.Thread(target=stopping.set).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
