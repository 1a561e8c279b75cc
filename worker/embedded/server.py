"""What every server of a stack has: a folder, a port, and a daemon that can be started, stopped and broken."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

import psutil

from worker.embedded.files import tail
from worker.embedded.owner import demotion, unprivileged
from worker.embedded.processes import PATIENCE_S, are_gone, is_alive, send
from worker.errors import SettingsError


class Server(ABC):
    """A daemon known by its pid file, so that any process of the folder can start, stop and break it."""

    def __init__(self, folder: Path, port: int, password: str) -> None:
        self.folder, self.port, self.password = folder, port, password
        self.name = folder.name
        self.log = folder / "log"

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients find it, password included."""

    @property
    @abstractmethod
    def _pid_file(self) -> Path: ...

    @property
    @abstractmethod
    def _mark(self) -> str:
        """What the command line of this very server holds: pids are used again, and a pid file may be stale."""

    @abstractmethod
    def _launch(self) -> str:
        """Start the daemon and return what it said."""

    @abstractmethod
    def _answers(self) -> bool: ...

    def process(self) -> psutil.Process | None:
        """Return the running process, or None."""
        try:
            process = psutil.Process(int(self._pid_file.read_text().split()[0]))
            return process if self._mark in " ".join(process.cmdline()) and is_alive(process) else None
        except (OSError, ValueError, IndexError, psutil.Error):
            return None

    def start(self) -> None:
        """Start it unless it runs, and wait until it answers. Raises `SettingsError` with the end of its log."""
        said = ""
        if self.process() is None:
            self._prepare()
            said = self._launch()
        deadline = time.monotonic() + PATIENCE_S
        while not (process := self.process()) or not self._answers():
            if process is None or time.monotonic() > deadline:
                raise SettingsError(f"the embedded {self.name} did not start\n{said}{tail(self.log)}".rstrip())
            time.sleep(0.01)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it in an orderly way, thawing it first; kill it when that takes too long."""
        if process := self.process():
            self.thaw()
            send(process, how)
            if not are_gone([process]):
                self.kill()

    def kill(self) -> None:
        """End it as a crash would: SIGKILL, children included."""
        tree = self._tree()
        for process in tree:
            send(process, signal.SIGKILL)
        are_gone(tree)

    def freeze(self) -> None:
        """Stop its clock (SIGSTOP): connections stay open and nothing answers."""
        for process in self._tree():
            send(process, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        for process in self._tree():
            send(process, signal.SIGCONT)

    def _tree(self) -> list[psutil.Process]:
        process = self.process()
        try:
            return [process, *process.children(recursive=True)] if process else []
        except psutil.NoSuchProcess:
            return []

    def _prepare(self) -> None:
        """Make the folder; its owner is whom the server runs as, since Postgres refuses root and Redis does not need it."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0 and self.folder.stat().st_uid == 0:
            home = self.folder.parent.stat()
            uid, gid = (home.st_uid, home.st_gid) if home.st_uid else unprivileged()
            os.chown(self.folder, uid, gid)
        # Postgres takes a pid that is in use again, as after the restart of a container, for itself and refuses to start.
        # `process()` knows better; a living backend Postgres still finds by its shared memory.
        self._pid_file.unlink(missing_ok=True)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".old"))

    def _run(self, program: Path, *args: str | Path, said: str = "") -> tuple[int, str]:
        """Run a program of the server in its folder, as its owner; return its exit code and what it printed."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))} | {"LC_ALL": "C"}
        try:
            done = subprocess.run([program, *args], cwd=self.folder, env=env, input=said, text=True, check=False,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,  # Ctrl-C is not for them
                preexec_fn=demotion(self.folder, program))  # fmt: skip
        except (OSError, subprocess.SubprocessError) as exc:
            raise SettingsError(
                f"cannot run {program} as the owner of {self.folder}: run as a normal user, "
                "or set HOLDFAST_HOME to a folder that others can pass through"
            ) from exc
        return done.returncode, done.stdout


def wheel(package: str, pattern: str) -> Path:
    """Find a program in an installed wheel without importing it."""
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for program in Path(place).glob(pattern):
            return program
    raise SettingsError(f'{package} is not installed: pip install "holdfast[embedded]", or set the URLs of your servers')
