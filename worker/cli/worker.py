"""`holdfast worker`: one worker in this process, or several small ones under a supervisor."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli import options
from worker.cli.services import check_servers, services

if TYPE_CHECKING:
    from worker.cli.supervisor import Spec

#: Gossip and mingle serve Celery features that the ledger replaces; they and the heartbeat cost half the throughput of no-ops.
_QUIET = ["--without-gossip", "--without-mingle"]


def processes(text: str) -> int:
    """Parse a number of processes; `auto` is one for each CPU this process may use. Raises `ValueError`."""
    if text == "auto":
        return _cpus()
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise ValueError(f"{text!r} is not a number of processes from 1 to 1000, or auto")
    return int(text)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker(
    context: typer.Context,
    queues: Annotated[
        str | None, typer.Option("--queues", "-Q", metavar="NAMES", help="Queues to serve, separated by commas; by default all.")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", "-c", min=1, help="Jobs a process runs at a time; by default the CPUs, shared out."),
    ] = None,
    pool: Annotated[
        str | None, typer.Option("--pool", "-P", metavar="KIND", help="prefork, threads or solo; by default prefork.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", metavar="NAME", help="Name of the worker; of several, NAME-1, NAME-2 …")
    ] = None,
    number: Annotated[
        int,
        typer.Option(
            "--processes", parser=processes, metavar="N|auto", help="Workers to run under one supervisor; auto: one a CPU."
        ),
    ] = "1",  # type: ignore[assignment]
    events: Annotated[bool, typer.Option("--events", "-E", help="Send events and a heartbeat, so that Flower sees it.")] = False,
    loglevel: options.LogLevel = None,
) -> None:
    """Run jobs. Options that Holdfast does not know are passed on to `celery worker`.

    SIGTERM and Ctrl-C stop it warmly: running jobs get HOLDFAST_SHUTDOWN_GRACE_S, then they are handed back.
    """
    with services():
        check_servers()
        if queues:
            _check_queues(queues)
        if number == 1:
            from worker.cli.stock import celery

            raise typer.Exit(celery(arguments(name and _node(name), queues, concurrency, pool, events, loglevel, context.args)))
        from worker.cli.supervisor import Supervisor

        shared = concurrency or max(1, _cpus() // number)
        raise typer.Exit(Supervisor(specs(number, name or "worker", queues, shared, pool, events, loglevel, context.args)).run())


def _check_queues(queues: str) -> None:
    from worker.cli.registry import check_queue
    from worker.settings import settings

    for queue in queues.split(","):
        check_queue(queue, [*settings().queues, settings().foreign_queue])


def arguments(
    node: str | None, queues: str | None, concurrency: int | None, pool: str | None, events: bool, loglevel: str | None,
    extra: list[str],
) -> list[str]:  # fmt: skip
    """Return the arguments of `celery` that start one worker on the sound base options."""
    from worker.settings import settings

    given = {"-n": node, "-Q": queues, "-c": concurrency, "-P": pool, "-l": loglevel or settings().log_level}
    options = [part for flag, value in given.items() if value is not None for part in (flag, str(value))]
    return ["worker", *options, *_QUIET, *(["-E"] if events else ["--without-heartbeat"]), *extra]


def specs(
    number: int, name: str, queues: str | None, concurrency: int | None, pool: str | None, events: bool, loglevel: str | None,
    extra: list[str],
) -> list[Spec]:  # fmt: skip
    """Return what a supervisor needs to run so many workers."""
    from worker.cli.supervisor import Spec

    base, _, host = name.partition("@")
    return [
        Spec(
            f"{base}-{index}",
            [sys.executable, "-m", "celery", "-A", "worker.app",
             *arguments(f"{base}-{index}@{host or '%h'}", queues, concurrency, pool, events, loglevel, extra)],
            hard=signal.SIGQUIT,
        )
        for index in range(1, number + 1)
    ]  # fmt: skip


def _node(name: str) -> str:
    return name if "@" in name else f"{name}@%h"
