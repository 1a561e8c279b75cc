"""The keeper of a stack: a daemon that stops the servers when nobody uses them any more."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil

from worker.embedded.files import is_same, open_owned, try_lock
from worker.embedded.processes import send
from worker.embedded.stack import Stack
from worker.settings import RUNTIME_FILE

#: Seconds between two looks of the keeper. Polled, so that it knows the servers even when the folder is deleted under it.
KEEPER_LOOK_S = 0.25


def keep(home: Path, lock: int) -> None:
    """Wait as a daemon until nobody uses the stack, then stop its servers."""
    users = open_owned(home / "users.lock")
    if pid := os.fork():
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{pid}\n".encode(), 0)
        os._exit(0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # asked to go, as at shutdown: the servers go along
    stack, seen = Stack(home), dict[str, psutil.Process]()
    try:
        while not try_lock(users) and is_same(users, home / "users.lock"):
            stack.load()
            seen |= {s.name: process for s in stack.servers if (process := s.process())}
            time.sleep(KEEPER_LOOK_S)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if is_same(users, home / "users.lock"):
            stack.load()
            for server in stack.servers:
                server.stop()
            (home / RUNTIME_FILE).unlink(missing_ok=True)
        else:  # the folder was deleted, and another stack may live in its place
            for process in seen.values():
                send(process, signal.SIGKILL)


if __name__ == "__main__":
    keep(Path(sys.argv[1]), int(sys.argv[2]))
