"""What the demo runs on: servers and programs of its own in a folder of its own, gone when it ends."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

from worker.cli.demo import record
from worker.cli.demo.plan import WORKERS
from worker.cli.supervisor import die_with_parent
from worker.db import statement, upgrade
from worker.embedded import Stack, ensure
from worker.errors import HoldfastError
from worker.ledger import callers, history
from worker.settings import settings

#: What the demo sets to less than usual, so that nobody has to wait for it to notice a death.
SHORTENED = {"node_beat_s": 1.0, "node_dead_s": 4.0, "audit_after_s": 2.0}
#: Seconds in which the programs must be up; importing Celery five times over takes most of it.
_READY_S = 90.0


class System:
    """Servers and programs, for as long as it is entered: Postgres, two Redis servers, what `holdfast up` runs, and Flower.

    **Guarantee:** nothing is left when it is left, also by an exception, but for the folder when `keep` is set.
    """

    stack: Stack

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self.folder = Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
        #: Whether the folder stays, for somebody to look into.
        self.keep = False
        self._programs: list[subprocess.Popen[bytes]] = []
        self._port, self._gateway_port = _free_port(), _free_port()
        self.gateway_key = ""
        self._flower_auth = f"demo:{secrets.token_hex(8)}"

    @property
    def flower_url(self) -> str:
        return f"http://{self._flower_auth}@127.0.0.1:{self._port}"

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self._gateway_port}"

    def __enter__(self) -> Self:
        try:
            self.stack = ensure(self.folder)
            self._interrupts.check()
            os.environ.update(self._environment())
            settings.cache_clear()
            upgrade()
            with statement() as conn:
                history.keep_up(conn)
                record.create(conn)
                self.gateway_key = callers.add(conn, "demo", scopes=("enqueue", "read"))
            self._interrupts.check()
            self._start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def _environment(self) -> Mapping[str, str]:
        return {
            "DATABASE_URL": self.stack.postgres.url, "REDIS_URL": self.stack.redis.url, "CACHE_URL": self.stack.cache.url,
            "HOLDFAST_HOME": str(self.folder), "HOLDFAST_INCLUDE": "worker.cli.demo.tasks",
            "HOLDFAST_HTTP_ALLOW_PRIVATE": "true",  # the counting server is on loopback
            "HOLDFAST_FLOWER_AUTH": self._flower_auth, "HOLDFAST_FLOWER_URL": f"http://127.0.0.1:{self._port}/",
            "HOLDFAST_WEBHOOK_SECRETS": "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(),
            "TMPDIR": str(self.folder),  # a worker that is killed leaves temporary files behind
            **{f"HOLDFAST_{name.upper()}": str(value) for name, value in SHORTENED.items()},
        }  # fmt: skip

    def _start(self) -> None:
        # Flower apart: with it, `up` lets the workers send events, which nobody looks at here and which cost a fifth of the time.
        self._run("up", "--no-flower", "--gateway-port", str(self._gateway_port), "--processes", str(WORKERS),
                  "--loglevel", "WARNING")  # fmt: skip
        self._run("flower", "--address", "127.0.0.1", "--port", str(self._port))

    def _run(self, *command: str) -> None:
        with self.log.open("ab") as log:
            self._programs.append(subprocess.Popen(
                [sys.executable, "-m", "worker.cli", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=die_with_parent(os.getpid()),
            ))  # fmt: skip

    @property
    def log(self) -> Path:
        """What the programs print."""
        return self.folder / "programs.log"

    def await_ready(self) -> None:
        """Wait until the workers have registered, and gateway and Flower answer. Raises `HoldfastError`."""
        deadline = time.monotonic() + _READY_S
        while not self._is_ready():
            self._interrupts.check()
            if any(program.poll() is not None for program in self._programs) or time.monotonic() > deadline:
                raise HoldfastError(f"the programs did not start; the end of their log:\n{self._tail()}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        with statement() as conn:
            if record.workers(conn) < WORKERS:
                return False
        try:
            looked = (httpx.get(url, timeout=2.0, trust_env=False)
                      for url in (f"{self.flower_url}/healthcheck", f"{self.gateway_url}/readyz"))  # fmt: skip
            return all(answer.is_success for answer in looked)
        except httpx.TransportError:
            return False

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def _close(self) -> None:
        for program in self._programs:
            # Not asked to stop: what it still does is of no use to anybody, and the folder goes.
            _kill_tree(program)
        if hasattr(self, "stack"):
            self.stack.close(wait=True)
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def _kill_tree(popen: subprocess.Popen[bytes]) -> None:
    """Kill a program and all it has started; it is stopped first, so that it starts nothing meanwhile."""
    try:
        process = psutil.Process(popen.pid)
        process.suspend()
        for child in process.children(recursive=True):
            child.kill()
    except psutil.NoSuchProcess:
        pass
    popen.kill()
    popen.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def apart() -> Iterator[None]:
    """Keep the settings and servers of whoever runs the demo out of it: it flushes Redis. Given back in the end."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("HOLDFAST_") or name in ("DATABASE_URL", "REDIS_URL", "CACHE_URL"):
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()


class Interrupts:
    """Ctrl-C, a request to end, or a terminal that goes, noticed where the demo says that it can stop.

    Not where they happen to strike: an exception out of a signal handler can fall into the middle of a fork, where it is lost and
    the locks held there with it, or between the start of a server and the note that it has to be stopped.
    """

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._asked = False

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if one has come."""
        if self._asked:
            raise KeyboardInterrupt

    def wait(self) -> None:
        """Wait until one comes; that is then what was asked for, and no interruption."""
        while not self._asked:
            time.sleep(0.2)

    def _note(self, *_: object) -> None:
        self._asked = True

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in self._NUMBERS}
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
