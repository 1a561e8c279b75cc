"""`holdfast relay`: send what is due, and rescue what was lost."""

from __future__ import annotations

import gc
import signal
import threading

from worker.cli import options
from worker.cli.output import note
from worker.cli.registry import load
from worker.cli.services import check_servers, services

#: Seconds for which a stopping relay lets its threads finish.
_STOP_S = 5.0


def relay(loglevel: options.LogLevel = None) -> None:
    """Send due jobs, take in the intake stream, carry events, and send again or rescue what was lost; any number may run."""
    with services():
        from worker import telemetry
        from worker.db import statement
        from worker.engine.forwarder import Forwarder
        from worker.engine.intake import CONSUMERS, Intake
        from worker.engine.registry import register_tasks
        from worker.engine.relay import Relay
        from worker.engine.rounds import Rounds
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
        stopping, rest_s = runner.stopping, settings().relay_interval_s
        beside = [Rounds("intake", Intake(app, stopping).round, stopping, rest_s) for _ in range(CONSUMERS)]
        beside.append(Rounds("events", Forwarder().round, stopping, rest_s))
        for thread in beside:
            thread.start()
        gc.freeze()  # what was imported stays: a full collection need not walk all of it, a tenth of a second each time
        note("relay ready")
        runner.run()
        for thread in beside:  # What they are in the middle of, they may die in; this only spares others the taking over.
            thread.join(_STOP_S)


def _stop_on_signal(stopping: threading.Event) -> None:
    # Set by a thread: a handler runs within the main thread, which may be holding the event's lock just then.
    def stop(*_: object) -> None:
        threading.Thread(target=stopping.set).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
