"""The guide to Redis in production holds: each process works under its user and may do nothing else; TLS from end to end."""

from __future__ import annotations

import gc
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery, chord, group
from redis import Redis
from redis.exceptions import NoPermissionError

from tests import harness
from tests import sample_tasks as tasks
from tests.acceptance import lock_tasks
from tests.console.visitors import PASSWORD, Visitor, routes
from tests.harness import Gateway, Program, Relay, Worker, eventually, free_port
from worker.app import app
from worker.cache import waits as cache_waits
from worker.cache.waits import Waits
from worker.cli.program import invoke
from worker.db import statement
from worker.doctor import Report, examine, mend, streams
from worker.embedded import RedisServer, Stack
from worker.ledger import callers, history, operators
from worker.locks.turns import Turns, turns
from worker.store import keys

GUIDE = (harness.ROOT / "docs" / "guides" / "redis-in-production.md").read_text()
INCLUDE = "tests.sample_tasks,tests.acceptance.lock_tasks"
ADD = tasks.add.name
TABLE = "CREATE TABLE ran (job_id text, label text, at timestamptz DEFAULT clock_timestamp())"

#: What is done in the console, with the fields of its form.
ACTS = {
    "queues/pause": {"queue": "default"}, "queues/resume": {"queue": "default"},
    "queues/window": {"queue": "default", "window": "7"},
    "schedules/fire": {"name": "soon"}, "streams/requeue-all": {"stream": "intake"}, "leaderboards/refresh": {},
    "limits/reset": {"name": "metered", "key": "a"}, "cache/forget": {"keys": "statistics.backlog:value", "tags": "statistics"},
    "cache/warm": {}, "flags/set": {"name": "f", "value": "on"}, "account/sessions/end-others": {},
}  # fmt: skip

#: Servers by their role.
Servers = dict[str, RedisServer]


@pytest.fixture
def guarded(tmp_path: Path, env: dict[str, str]) -> Iterator[Servers]:
    """Both servers with the users of the guide."""
    servers = {}
    for name, role in (("coordination", "redis"), ("cache", "cache")):
        (tmp_path / role).mkdir()
        servers[name] = RedisServer(tmp_path / role, free_port(), "an-own-secret")
        servers[name].start()
        with Redis.from_url(servers[name].url) as client:
            client.execute_command("ACL", "SETUSER", "boss", "on", ">an-own-secret", "~*", "&*", "+@all")
            for words in users(name):
                client.execute_command(*(word.replace("PASSWORD", "an-own-secret") for word in words))
    yield servers
    for server in servers.values():
        server.kill()


def users(server: str) -> list[list[str]]:
    """Return the commands that the guide gives for a server."""
    block = GUIDE.split(f"On the {server} server:")[1].split("```")[1]
    return [line.split() for line in block.strip().splitlines()]


def as_user(server: RedisServer, user: str) -> str:
    return server.url.replace("//:", f"//{user}:")


def refused(servers: Servers) -> list[str]:
    """Return who was refused what."""
    told = []
    for name, server in servers.items():
        with Redis.from_url(as_user(server, "boss")) as client:
            told += [f"{one['username']} on {name}: {one['reason']} {one['object']}" for one in client.acl_log()]
    return told


# ---- TLS


class TlsEnd:
    """What speaks TLS in front of a server that has none; for Postgres it first answers the request to begin TLS."""

    def __init__(self, context: ssl.SSLContext, port: int, *, postgres: bool = False) -> None:
        self._context, self._behind, self._postgres = context, port, postgres
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        #: Connections on which TLS was spoken.
        self.spoken = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._socket.accept()[0],), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        with suppress(OSError):
            if self._postgres:
                raw.recv(8)
                raw.sendall(b"S")
            outside = self._context.wrap_socket(raw, server_side=True)
            self.spoken += 1
            inside = socket.create_connection(("127.0.0.1", self._behind))
            threading.Thread(target=_pass_on, args=(inside, outside), daemon=True).start()
            _pass_on(outside, inside)


def _pass_on(source: socket.socket, to: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            to.sendall(data)
    for end in (source, to):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate authority of the test's own, what serves a certificate of it for localhost, and beside it another one."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=tmp_path)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test authority")
    openssl("req", "-x509", *new, "-keyout", "other.key", "-out", "other.pem", "-days", "2", "-subj", "/CN=another authority")
    openssl("req", *new, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    (tmp_path / "names").write_text("subjectAltName=DNS:localhost")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2", "-out", "server.pem",
            "-extfile", "names")  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    return tmp_path / "ca.pem", context


class Front:
    """What stands before the three servers and speaks TLS: the only way to them, as in production."""

    def __init__(self, stack: Stack, servers: Servers, env: dict[str, str], ca: Path, context: ssl.SSLContext) -> None:
        self._env, self._ca = env, ca
        self.ends = {
            "DATABASE_URL": TlsEnd(context, stack.postgres.port, postgres=True),
            "REDIS_URL": TlsEnd(context, servers["coordination"].port), "CACHE_URL": TlsEnd(context, servers["cache"].port),
        }  # fmt: skip

    def urls(self, user: str, ca: Path | None = None) -> dict[str, str]:
        """Return the environment of a process that works under this user, and believes this authority alone."""
        ca = ca or self._ca
        redis = f"rediss://{user}:an-own-secret@localhost:{{}}/0?ssl_cert_reqs=required&ssl_ca_certs={ca}"
        postgres = re.sub(r"127\.0\.0\.1:\d+", "localhost:{}", self._env["DATABASE_URL"])
        postgres += f"?sslmode=verify-full&sslrootcert={ca}"
        return {
            name: (postgres if name == "DATABASE_URL" else redis).format(end.port) for name, end in self.ends.items()
        }  # fmt: skip


@pytest.fixture
def front(stack: Stack, guarded: Servers, env: dict[str, str], authority: tuple[Path, ssl.SSLContext]) -> Iterator[Front]:
    """The way to the guarded servers and to Postgres by TLS."""
    made = Front(stack, guarded, env, *authority)
    yield made
    for end in made.ends.values():
        end.close()


def fall_silent() -> None:
    """Stop listening to what earlier tests let this process hear for its life: under the users of these it is refused that."""
    for ear in [found for found in gc.get_objects() if isinstance(found, Turns | Waits)]:
        listener = ear._listener
        with listener._lock:
            if listener._wanted:
                listener._wanted.clear()
                listener._ring()
    turns.cache_clear()
    cache_waits._waits = None


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Let this process go by these URLs."""

    def go_by(urls: dict[str, str]) -> None:
        fall_silent()
        for name, url in urls.items():
            monkeypatch.setenv(name, url)
        harness.forget()
        app.finalize()

    return go_by


# ---- each under its user


def test_each_process_works_under_its_user_by_tls_and_may_do_nothing_else(
    guarded: Servers, front: Front, become: Callable[[dict[str, str]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LIMITS", "CACHE"):
        monkeypatch.setenv(f"HOLDFAST_{name}_TIMEOUT_MS", "5000")  # what is tried is who may do what, not how fast
    become(front.urls("boss"))
    with statement() as conn:
        conn.execute(TABLE)
    gateway = Gateway(include=INCLUDE, env=front.urls("holdfast-gateway"))
    programs = [
        gateway, Relay(env={**front.urls("holdfast-relay"), "HOLDFAST_INCLUDE": INCLUDE}),
        Worker(include=INCLUDE, env=front.urls("holdfast-worker")),
        Program("-m", "worker.cli", "beat", name="beat", ready="Starting", env=front.urls("holdfast-beat")),
    ]  # fmt: skip
    try:
        for program in programs:
            program.start(wait=False)
        for program in programs:
            program.wait_for_log(program.ready, harness.READY_S)
        ask_by_http(gateway, tmp_path)
        ask_by_celery(tmp_path)
        with Redis.from_url(as_user(guarded["coordination"], "boss")) as client:
            ask_by_redis(client)
        ask_by_console(gateway)
    finally:
        told = refused(guarded)
        for program in programs:
            program.kill_tree()
    assert told == []
    assert all(end.spoken >= len(programs) for end in front.ends.values()), {n: e.spoken for n, e in front.ends.items()}
    for server in guarded.values():
        for user in ("worker", "relay", "beat", "gateway", "doctor"):
            may_do_nothing_else(server, f"holdfast-{user}")


def ask_by_http(gateway: Gateway, folder: Path) -> None:
    """Have jobs done, followed and cancelled."""
    with statement() as conn:
        key = callers.add(conn, "me", scopes=("enqueue", "read"), rate="100/second")
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=gateway.url, headers=headers, trust_env=False, timeout=60) as http:
        job = http.post("/v1/jobs", json={"task": ADD, "args": [1, 1]}).json()
        told = http.get(job["href"], params={"wait": "30s"}).json()
        assert (told["state"], told["result"]) == ("succeeded", 2)
        gate = str(folder / "gate")
        job = http.post("/v1/jobs", json={"task": tasks.until_cancelled.name, "args": [gate]}).json()
        eventually((folder / "gate").exists, 30)
        assert http.post(f"{job['href']}:cancel").status_code == 200
        assert "stopped" in http.get(job["href"], params={"wait": "30s"}).text
        assert "succeeded" in http.get(f"{job['href']}/events").text
        assert http.get("/readyz").json()["redis"] == "ready"


def ask_by_console(gateway: Gateway) -> None:
    """Log in, look at every page, and do what takes Redis for it."""
    with statement() as conn:
        operators.add(conn, "ada", "admin", PASSWORD)
        ((job_id,),) = conn.execute("SELECT id FROM job_history WHERE task = %s LIMIT 1", (ADD,)).fetchall()
    with Visitor(gateway.url) as ada:
        assert ada.log_in("ada").status_code == 303
        paths = [path for path in routes("GET") if "{" not in path and "/live/" not in path]
        statuses = {path: ada.get(path).status_code for path in [*paths, f"/console/jobs/{job_id}"]}
        assert set(statuses.values()) <= {200, 303, 404, 422}, statuses
        for path in ("/console/live/overview", "/console/live/workers", f"/console/jobs/{job_id}/live"):
            with ada.stream("GET", path) as told:
                assert next(told.iter_bytes())
        assert ada.send_form(f"/console/jobs/{job_id}/writing").status_code == 204
        for act, fields in ACTS.items():
            ada.act(f"/console/{act}", fields)
        assert ada.send_form("/console/logout").status_code == 303


def ask_by_celery(folder: Path) -> None:
    """Have done what a worker needs Redis for besides its queues: chords, progress, retries, limits, locks, what is cached."""
    (folder / "open").touch()
    jobs = [
        chord([tasks.add.s(1, 1), tasks.add.s(2, 2)])(tasks.total.s()), group(tasks.add.s(3, 3), tasks.add.s(4, 4))(),
        tasks.step.delay(3, str(folder / "open")), tasks.autoretry.delay(1), tasks.become_chain.delay(1), tasks.unique.delay(1),
        tasks.metered.delay(tenant="a"), tasks.crowd.delay("a", 0.01), tasks.lock_and_token.delay(),
        lock_tasks.in_redis.delay("a", str(folder / "log"), 0.01), app.send_task("cache.warm"), app.send_task("boards.refresh"),
        app.send_task("maintenance.upkeep"),
    ]  # fmt: skip
    for job in jobs:
        job.get(timeout=60)
    plain = tasks.plain.delay(20)  # of no row, so it is Celery's own revoke that reaches it
    plain.revoke(terminate=True)


def ask_by_redis(client: Redis) -> None:
    """Have done what comes by the stream, by a stock Celery and by the clock, and set aside what cannot be a job."""
    assert invoke(["schedules", "add", "soon", ADD, "30", "1", "--every", "1s"]) == 0
    Celery(broker=as_url(client)).send_task(ADD, (20, 2))
    client.xadd(keys.intake(), {"task": ADD, "args": "[20, 1]", "key": "one"})
    client.xadd(keys.intake(), {"task": "nobody's"})
    eventually(lambda: {"21", "22", "31"} <= results(), 30, what="what came by the stream, by Celery and by the clock")
    eventually(lambda: client.xlen(keys.dead(keys.intake())), 30)


def as_url(client: Redis) -> str:
    told = client.connection_pool.connection_kwargs
    return f"redis://{told['username']}:{told['password']}@{told['host']}:{told['port']}/0"


def results() -> set[str]:
    """Return the results of all additions so far."""
    with statement() as conn:
        rows = conn.execute("SELECT result::text FROM job_history WHERE task = %s AND state = 'succeeded'", (ADD,)).fetchall()
    return {row[0] for row in rows}


def may_do_nothing_else(server: RedisServer, user: str) -> None:
    outside: list[tuple[Any, ...]] = [
        ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("CONFIG", "SET", "maxmemory", "1"), ("ACL", "LIST"), ("SHUTDOWN",),
        ("MONITOR",), ("REPLICAOF", "NO", "ONE"), ("SAVE",), ("CLIENT", "LIST"), ("MIGRATE", "h", 1, "k", 0, 1),
        ("SCRIPT", "FLUSH"), ("PUBLISH", "strangers", "x"), ("SUBSCRIBE", "strangers"),
    ]  # fmt: skip
    if "doctor" not in user:
        outside += [("SET", "strangers", "x"), ("GET", "strangers"), ("SCAN", "0"), ("CONFIG", "GET", "*")]
    with Redis.from_url(as_user(server, user)) as client:
        for command in outside:
            with pytest.raises(NoPermissionError):
                client.execute_command(*command)


# ---- the doctor


def test_the_doctor_sees_and_mends_everything_under_its_user_and_finds_nothing(
    guarded: Servers, front: Front, become: Callable[[dict[str, str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    become(front.urls("holdfast-doctor"))
    with statement() as conn:
        history.keep_up(conn)
    report = examine(app)
    assert (list(report.findings), report.skipped, refused(guarded)) == ([], {}, [])
    with Redis.from_url(as_user(guarded["cache"], "boss")) as client:
        client.set(keys.cache_entry("endless"), "x")
    with Redis.from_url(as_user(guarded["coordination"], "boss")) as client:
        client.xgroup_create(keys.intake(), "holdfast", id="0", mkstream=True)
        client.xgroup_createconsumer(keys.intake(), "holdfast", "idle")
    monkeypatch.setattr(streams, "_IDLE_S", 0.0)
    report = examine(app)
    assert mend(app, report.findings).keys() == {"keys.endless", "streams.idle-consumers"}
    assert (list(examine(app).findings), refused(guarded)) == ([], [])


def test_a_server_that_no_authority_vouches_for_is_not_spoken_to(
    front: Front, become: Callable[[dict[str, str]], None], authority: tuple[Path, ssl.SSLContext]
) -> None:
    become(front.urls("boss"))
    assert away(examine(app)) == 0
    become(front.urls("boss", ca=authority[0].with_name("other.pem")))
    assert away(examine(app)) == 3
    become({name: url.replace("localhost", "127.0.0.1") for name, url in front.urls("boss").items()})  # not its name
    assert away(examine(app)) == 3


def away(report: Report) -> int:
    return len([finding for finding in report.findings if finding.check == "servers.away"])
