"""Processes that are not our children: whether they live, and signals to them."""

from __future__ import annotations

import signal
import time

import psutil

#: Seconds a server may take to start or stop; Postgres may have to replay its log after a crash.
PATIENCE_S = 60.0


def are_gone(processes: list[psutil.Process]) -> bool:
    """Wait until they have ended. A zombie has: it only waits for an init that may be slow to look, or never does."""
    deadline = time.monotonic() + PATIENCE_S
    while any(is_alive(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def send(process: psutil.Process, what: signal.Signals) -> None:
    try:
        process.send_signal(what)
    except psutil.NoSuchProcess:
        pass
