"""Programs that start in no time: forks of a process that has imported what they import, which takes a second or two.

A fork is the program as `python -m MODULE` runs it, with its own session, environment and output, and ends like any process.
What looks at the environment as it is imported is not imported before: `worker.app` and all that stands on it.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from worker.cli.supervisor import die_with_parent

#: What Celery's commands, workers and beats import, and what those of Holdfast do.
_IMPORTED = (
    "celery.bin.celery", "celery.apps.worker", "celery.apps.beat", "celery.concurrency.solo", "celery.concurrency.thread",
    "celery.worker.consumer", "celery.events.state", "kombu.transport.redis", "models", "sqlalchemy.dialects.postgresql.psycopg",
    "structlog.dev", "uvicorn", "worker.cli.program", "worker.engine.prefork", "worker.engine.backend", "worker.engine.amqp",
    "worker.engine.task", "worker.engine.control", "worker.engine.relay", "worker.engine.signals", "worker.engine.steps",
    "worker.engine.transport", "worker.engine.node", "worker.engine.registry", "worker.gateway.server", "worker.cache",
    "worker.limits", "worker.locks", "worker.telemetry", "httpx", "httpcore", "standardwebhooks",
)  # fmt: skip


class Fork:
    """A program that was forked, for its starter: what of `subprocess.Popen` is needed to watch it and to end it."""

    def __init__(self, pid: int, end: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._end = end

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            if not select.select([self._end], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            told = os.read(self._end, 16)
            os.close(self._end)
            self.returncode = int(told) if told else -signal.SIGKILL  # it went with the nursery
        return self.returncode

    def send_signal(self, what: int) -> None:
        """Send a signal; does nothing when it has ended."""
        if self.poll() is None:
            os.kill(self.pid, what)

    def kill(self) -> None:
        """Kill it (SIGKILL)."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that forks, for those who have it fork. It starts with the first program and ends with who started it."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._nothing = os.open(os.devnull, os.O_RDONLY)

    @cached_property
    def _channel(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            subprocess.Popen(
                [sys.executable, "-m", "tests.nursery", str(theirs.fileno())], cwd=Path(__file__).parents[1],
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
                preexec_fn=die_with_parent(os.getpid()),
            )  # fmt: skip
        return ours

    def fork(self, module: str, *args: str, env: Mapping[str, str], stdout: IO[Any], stderr: IO[Any],
             stdin: IO[Any] | None = None) -> Fork:  # fmt: skip
        """Run `python -m MODULE` with these arguments, in this environment, on these files."""
        ours, theirs = os.pipe()
        told = json.dumps({"module": module, "args": args, "env": dict(env)}).encode() + b"\n"
        files = [stdin.fileno() if stdin else self._nothing, stdout.fileno(), stderr.fileno()]
        with self._asking:
            sent = socket.send_fds(self._channel, [told], [*files, theirs])
            self._channel.sendall(told[sent:])
            os.close(theirs)
            return Fork(int(self._channel.recv(16)), ours)


# ---- within it


def _serve(channel: socket.socket) -> dict[str, Any]:
    """Fork as told, until nobody is left to tell; return, in each fork, what it is to run."""
    ends: dict[int, int] = {}
    guard = die_with_parent(os.getpid())
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    while True:
        ready, _, _ = select.select([channel, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _tell_ends(ends)
        if channel not in ready:
            continue
        part, files, *_ = socket.recv_fds(channel, 1 << 20, 4)
        told = part
        while part and not told.endswith(b"\n"):
            part = channel.recv(1 << 20)
            told += part
        if not part:
            raise SystemExit
        pid = os.fork()
        if pid == 0:
            if guard is not None:
                guard()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for place, file in enumerate(files[:3]):
                os.dup2(file, place)
            for file in (channel.detach(), woken, wake, *files, *ends.values()):
                os.close(file)
            return json.loads(told)  # type: ignore[no-any-return]
        ends[pid] = files.pop()
        for file in files:
            os.close(file)
        channel.sendall(str(pid).encode())


def _tell_ends(ends: dict[int, int]) -> None:
    while ends:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        os.write(ends[pid], str(os.waitstatus_to_exitcode(status)).encode())
        os.close(ends.pop(pid))


def _become(program: dict[str, Any]) -> None:
    """Run the program as an interpreter that was just started for it."""
    os.setsid()
    os.environ.clear()
    os.environ.update(program["env"])
    time.tzset()
    sys.argv = [program["module"], *program["args"]]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    runpy.run_module(program["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in _IMPORTED:
        import_module(name)
    assert "worker.app" not in sys.modules
    gc.collect()
    gc.freeze()
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
