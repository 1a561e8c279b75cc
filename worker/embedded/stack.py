"""The servers of one folder, and how processes share them."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import subprocess
import sys
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from worker.embedded.files import open_owned, tail, try_lock, write
from worker.embedded.postgres import PostgresServer
from worker.embedded.processes import are_gone
from worker.embedded.redis import RedisServer
from worker.embedded.server import Server
from worker.errors import SettingsError
from worker.settings import RUNTIME_FILE

#: Below the ephemeral ports of Linux and macOS: no outgoing connection takes a server's port while it restarts.
PORTS = range(20_000, 32_000)


class Stack:
    """The servers of one folder, and this process's share in them until `close`."""

    def __init__(self, home: Path, *, fsync: bool = True) -> None:
        self.home, self._fsync, self._users = home, fsync, -1
        self._load({})

    def _load(self, known: dict[str, Any]) -> None:
        port, password = known.get("ports", {}), known.get("password", "")
        self.postgres = PostgresServer(self.home / "postgres", port.get("postgres", 0), password, fsync=self._fsync)
        self.redis = RedisServer(self.home / "redis", port.get("redis", 0), password)
        self.cache = RedisServer(self.home / "cache", port.get("cache", 0), password)

    @property
    def servers(self) -> tuple[Server, ...]:
        return self.redis, self.cache, self.postgres

    def load(self) -> None:
        """Learn the ports and the password of this folder, if it has any yet."""
        try:
            self._load(json.loads((self.home / "stack.json").read_text()))
        except FileNotFoundError:
            self._load({})

    def choose_ports(self) -> None:
        """Keep the ports and the password of this folder; take another port where a stranger took it."""
        self.load()
        chosen: dict[str, int] = {}
        for server in self.servers:
            port = server.port or PORTS.start + zlib.crc32(bytes(server.folder)) % len(PORTS)
            while server.process() is None and (port in chosen.values() or not _is_free(port)):
                port = port + 1 if port + 1 in PORTS else PORTS.start
            chosen[server.name] = port
        known = {"ports": chosen, "password": self.redis.password or secrets.token_hex(16)}
        write(self.home / "stack.json", json.dumps(known))
        self._load(known)

    def join(self) -> None:
        """Take a share, starting what does not run."""
        users = open_owned(self.home / "users.lock")
        self._users = users
        fcntl.flock(users, fcntl.LOCK_SH)  # waits while a keeper is stopping the servers
        starting = open_owned(self.home / "start.lock")
        try:
            fcntl.flock(starting, fcntl.LOCK_EX)
            keeper = _spawn_keeper(self.home)
            try:
                self._start()
            finally:
                failed = keeper is not None and keeper.wait() != 0  # it has daemonized meanwhile
            if failed:
                raise SettingsError(f"the keeper of {self.home} did not start\n{tail(self.home / 'keeper.log')}")
            self._announce()
        except BaseException:
            self.close()
            raise
        finally:
            os.close(starting)

    def _start(self) -> None:
        for attempt in range(3):
            self.choose_ports()
            try:
                for server in self.servers:
                    server.start()
                return
            except SettingsError:
                # A port that was free a moment ago may be taken now: choose again. Anything else stays as it is.
                if attempt == 2 or all(s.process() or _is_free(s.port) for s in self.servers):
                    raise

    def _announce(self) -> None:
        pids: dict[str, int] = {s.name: p.pid for s in self.servers if (p := s.process())}
        pids["keeper"] = int((self.home / "keeper.lock").read_text() or 0)
        urls = {"database_url": self.postgres.url, "redis_url": self.redis.url, "cache_url": self.cache.url}
        write(self.home / RUNTIME_FILE, json.dumps({**urls, "pids": pids}, indent=2))

    def close(self, *, wait: bool = False) -> None:
        """Give the share back; the servers stop with the last one. `wait`, for the last user, returns when they have."""
        if self._users < 0:
            return
        keeper: list[psutil.Process] = []
        try:
            if (spawned := _spawn_keeper(self.home)) is not None:  # somebody killed it
                spawned.wait()
            keeper.append(psutil.Process(int((self.home / "keeper.lock").read_text())))
        except (OSError, ValueError, psutil.NoSuchProcess):
            pass  # the folder was deleted, or the keeper has just gone
        # Closed, not unlocked: unlocking would take the share from forked children, which use the servers too.
        os.close(self._users)
        self._users = -1
        if wait:
            are_gone(keeper)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def ensure(home: Path, *, fsync: bool = True) -> Stack:
    """Join the embedded stack of this folder, starting it when none runs.

    The share lasts until `close`, or the end of this process and of the children it forked. Raises `SettingsError` when the
    wheels are not installed or a server does not start, with the end of its log.

        with ensure(Path(".holdfast")) as stack:
            print(stack.redis.url)

    **Guarantee:** a server runs as long as any process that joined; after the last is gone, even by kill -9, so are they,
    within a second. Their data stay in the folder, and so do their ports while no stranger takes one.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        stack = Stack(home.resolve(), fsync=fsync)
        stack.join()
    except PermissionError as exc:
        raise SettingsError(f"{exc.filename or home} belongs to another user: run as that user, or set HOLDFAST_HOME") from exc
    return stack


def _spawn_keeper(home: Path) -> subprocess.Popen[bytes] | None:
    """Start the keeper unless one lives; the lock that makes it the only one is taken here and handed down."""
    lock = open_owned(home / "keeper.lock")
    try:
        if not try_lock(lock):
            return None
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
        with (home / "keeper.log").open("wb") as log:
            return subprocess.Popen([sys.executable, "-m", "worker.embedded.keeper", home, str(lock)], pass_fds=[lock],
                env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                start_new_session=True)  # fmt: skip
    finally:
        os.close(lock)


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections do not hold a port
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
