"""The doctor: each fault that is planted is found, and a stack without one is found sound."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from tests import harness
from tests.harness import create_database, drop_database, eventually
from tests.integration.conftest import Bench, free_port
from tests.integration.door import Door, key_for
from tests.sample_tasks import add
from worker import clock
from worker.app import app
from worker.cli.program import invoke
from worker.db import statement
from worker.doctor import CHECKS, Report, examine, keyspace, mend, postgres, servers, streams
from worker.embedded import RedisServer, Stack
from worker.engine.relay import Relay
from worker.ledger import history, nodes
from worker.store import keys

Conn = psycopg.Connection[Any]
Conf = Callable[..., None]


@pytest.fixture(autouse=True)
def _env(env: dict[str, str]) -> None:
    """Every test looks at the emptied servers of the stack, whose figures and slow log begin anew."""
    app.finalize()
    for name in ("REDIS_URL", "CACHE_URL"):
        with Redis.from_url(env[name]) as client:
            client.config_resetstat()
            client.slowlog_reset()


@pytest.fixture
def kept_up() -> None:
    """Partitions of the days ahead, as every relay makes them when it starts."""
    with statement() as conn:
        history.keep_up(conn)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Callable[[str], RedisServer]]:
    """Start Redis servers of a test's own, which it may set up wrongly."""
    started: list[RedisServer] = []

    def start(role: str) -> RedisServer:
        folder = tmp_path / str(len(started)) / role
        folder.mkdir(parents=True)
        server = RedisServer(folder, free_port(), "an-own-secret")
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()  # one that was just told to keep a file would stop only when it has written it


@pytest.fixture
def own(other: Callable[[str], RedisServer], conf: Conf, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Redis]:
    """Put a server of the test's own in a role and return a client of it."""

    def put(role: str) -> Redis:
        server = other(role)
        monkeypatch.setenv({"redis": "REDIS_URL", "cache": "CACHE_URL"}[role], server.url)
        harness.forget()
        return Redis.from_url(server.url)

    return put


def found(name: str, report: Report | None = None) -> list[str]:
    """Return what one check finds."""
    (one,) = [one for one in CHECKS if one.name == name]
    report = report or examine(app, [one])
    assert name not in report.skipped, report.skipped
    return [finding.found for finding in report.findings if finding.check == name]


# ---- a sound stack


def test_nothing_is_found_where_nothing_is_wrong(kept_up: None) -> None:
    report = examine(app)
    assert (list(report.findings), report.skipped, report.worst) == ([], {}, None)


def test_nothing_is_found_after_work(kept_up: None, bench: Bench, relay: Relay) -> None:
    results = [add.delay(n, n) for n in range(200)]
    add.apply_async((1, 1), countdown=3600)
    relay.round()
    assert len(bench.work()) == 200
    assert [result.get(timeout=10) for result in results[:3]] == [0, 2, 4]
    report = examine(app)
    assert (list(report.findings), report.skipped) == ([], {})


def test_every_check_says_what_matters_and_how_to_mend_it_and_the_guide_explains_it() -> None:
    guide = (harness.ROOT / "docs" / "guides" / "redis-in-production.md").read_text()
    assert len({one.name for one in CHECKS}) == len(CHECKS)
    for one in CHECKS:
        severity = f"{one.severity}{', --fix' if one.fix else ''}"
        assert f"| `{one.name}` | {severity} | {one.why} | {one.mend} |" in guide


# ---- servers


def test_a_server_that_is_away_is_found_and_the_others_are_looked_at(conf: Conf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_URL", f"redis://:pw@127.0.0.1:{free_port()}/0")
    harness.forget()
    report = examine(app)
    (away,) = [finding for finding in report.findings if finding.check == "servers.away"]
    assert "cache" in away.found
    assert "cache.on-disk" in report.skipped
    assert "postgres.schema" not in report.skipped


def test_postgres_that_is_away_is_found_and_asked_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"postgresql://holdfast:pw@127.0.0.1:{server.getsockname()[1]}/holdfast?gssencmode=disable"
        monkeypatch.setenv("DATABASE_URL", url)
        harness.forget()
        threading.Thread(target=turn_away, args=(server, asked), daemon=True).start()
        report = examine(app)
        server.shutdown(socket.SHUT_RDWR)
    assert [finding.check for finding in report.findings] == ["servers.away"]
    assert {"postgres.schema", "workers.silent"} <= report.skipped.keys()
    assert len(asked) <= 2  # by TLS and without


def turn_away(server: socket.socket, asked: list[socket.socket]) -> None:
    with suppress(OSError):
        while True:
            asked.append(server.accept()[0])
            asked[-1].close()


def test_a_coordination_server_that_evicts_and_keeps_nothing_is_found(own: Callable[[str], Redis]) -> None:
    client = own("redis")
    assert found("redis.evicts") == found("redis.forgets") == []
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("appendonly", "no")
    assert "allkeys-lru" in found("redis.evicts")[0]
    assert "append-only" in found("redis.forgets")[0]
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 300_000)
    for n in range(2000):
        client.set(f"celery{n}", "x" * 1000)
    assert "evicted" in found("redis.evicted")[0]


def test_a_file_that_is_written_when_the_system_likes_is_found(own: Callable[[str], Redis]) -> None:
    own("redis").config_set("appendfsync", "no")
    assert "appendfsync no" in found("redis.forgets")[0]


def test_a_cache_that_cannot_evict_or_is_kept_on_disk_is_found(own: Callable[[str], Redis]) -> None:
    client = own("cache")
    assert found("cache.cannot-evict") == found("cache.on-disk") == []
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 0)
    client.config_set("save", "60 1")
    client.config_set("appendonly", "yes")
    assert len(found("cache.cannot-evict")) == 2
    assert len(found("cache.on-disk")) == 2


def test_one_server_in_both_roles_is_found(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("redis.same-server") == []
    monkeypatch.setenv("CACHE_URL", env["REDIS_URL"].removesuffix("/0") + "/1")
    harness.forget()
    assert found("redis.same-server") == ["REDIS_URL and CACHE_URL name the same server"]


def test_a_server_that_is_full_is_found_with_the_writes_and_connections_it_refused(own: Callable[[str], Redis]) -> None:
    client = own("redis")
    assert found("redis.memory") == found("redis.rejected") == []
    client.rpush("default", *["x" * 1000] * 5000)
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    with pytest.raises(OutOfMemoryError):
        client.rpush("default", "x")
    report = examine(app)
    assert "of its maxmemory" in found("redis.memory", report)[0]
    assert "refused" in found("redis.rejected", report)[0]
    assert report.skipped == {}  # whoever looks for what is wrong can do so while it is
    client.config_set("maxmemory", 0)
    most = client.config_get("maxclients")["maxclients"]
    client.config_set("maxclients", 1)
    with pytest.raises(Exception, match="max number of clients"):
        Redis.from_url(harness_url(client)).ping()
    client.config_set("maxclients", most)
    assert any("turned away 1 connections" in line for line in found("redis.rejected"))


def harness_url(client: Redis) -> str:
    told = client.connection_pool.connection_kwargs
    return f"redis://:{told['password']}@{told['host']}:{told['port']}/0"


def test_memory_that_holds_nothing_is_found(own: Callable[[str], Redis], monkeypatch: pytest.MonkeyPatch) -> None:
    own("redis")
    assert found("redis.fragmentation") == []  # a small server takes a few megabytes more than its data, and that is no fault
    monkeypatch.setattr(servers, "_FRAGMENTED_BYTES", 1)
    assert "coordination" in found("redis.fragmentation")[0]


def test_a_command_that_held_everybody_up_is_found(redis: Redis) -> None:
    assert found("redis.slow") == []
    redis.eval("local t = os.clock() repeat until os.clock() - t > 0.15 return 1", 0)
    (line,) = found("redis.slow")
    assert "EVAL" in line


# ---- keys


def test_keys_without_an_end_are_found_by_what_they_begin_with_and_the_copies_mended(redis: Redis, cache: Redis) -> None:
    assert found("keys.endless") == []
    cache.set(keys.cache_entry("report:1"), "x")
    cache.set(keys.cache_entry("report:2"), "x", ex=50)
    cache.set("strangers", "x")
    redis.set(keys.lock("door"), "token")
    redis.set(keys.epoch(), "e")  # this one is meant to stay
    redis.lpush("default", "{}")
    lines = found("keys.endless")
    assert len(lines) == 3
    assert any(line.startswith("1 keys holdfast:lock:") for line in lines)
    assert any(keys.cache_entry("report:1") in line for line in lines)
    mend(app, examine(app).findings)
    assert 0 < cache.ttl(keys.cache_entry("report:1")) <= 86_400
    assert cache.ttl(keys.cache_entry("report:2")) <= 50
    assert cache.ttl("strangers") == redis.ttl(keys.lock("door")) == -1


def test_keys_of_strangers_are_found(redis: Redis, cache: Redis) -> None:
    assert found("keys.undeclared") == []
    redis.set("session:1", "x", ex=60)
    redis.set("session:22", "x", ex=60)
    redis.set(keys.cache_entry("a"), "on the wrong server", ex=60)
    cache.set("rq:job:1", "x")
    cache.rpush("default", "{}")  # a queue, but not here
    cache.set(keys.cache_entry("a"), "ours", ex=60)
    cache.set("holdfast:cache:{a}:bogus", "x", ex=60)
    lines = found("keys.undeclared")
    assert any(line.startswith("2 keys session:") for line in lines)
    assert any("holdfast:cache:{a}:bogus" in line for line in lines)
    assert len(lines) == 5, lines


def test_every_key_that_is_declared_is_known_by_its_role() -> None:
    made = [keys.queue("default", 5), keys.epoch(), keys.job_lock("a"), keys.fence(keys.lock("a")), keys.limit("a", "s60"),
            keys.stream("a"), keys.stream_once(keys.intake(), "b"), keys.dead(keys.intake()), keys.events(),
            keys.session("a"), keys.board("a", "d1"), "_kombu.binding.celery.pidbox",
            "6f2d-1.reply.celery.pidbox"]  # fmt: skip
    assert [key for key in made if keyspace.kind_of(key, "coordination", {"default"}) is None] == []
    copies = [keys.result("a"), keys.cache_entry("a:b"), keys.cache_lease("a"), keys.cache_tag("t"), keys.flags()]
    assert [key for key in copies if keyspace.kind_of(key, "cache", {"default"}) is None] == []
    assert keyspace.kind_of("other", "coordination", {"default"}) is None


def test_a_big_and_a_hot_key_are_found(redis: Redis, own: Callable[[str], Redis]) -> None:
    cache = own("cache")
    cache.set(keys.cache_entry("small"), "x", ex=60)
    assert found("keys.big") == found("keys.hot") == []
    redis.set(keys.lock("big"), "x" * 9_000_000, ex=60)
    cache.config_set("lfu-log-factor", 0)
    pipe = cache.pipeline(transaction=False)
    for _ in range(300):
        pipe.get(keys.cache_entry("small"))
    pipe.execute()
    assert "9 MB" in found("keys.big")[0]
    assert keys.cache_entry("small") in found("keys.hot")[0]


def test_keys_by_the_thousand_are_looked_at_in_short_steps(own: Callable[[str], Redis]) -> None:
    client = own("cache")
    fill = "for n = ARGV[1], ARGV[1] + 9999 do redis.call('SET', ARGV[2] .. '{' .. n .. '}', n, 'EX', 900) end"
    for start, head in enumerate(("celery-task-meta-", "holdfast:cache:", "strangers:")):
        client.eval(fill, 0, start * 10_000, head)
    client.set(keys.cache_entry("endless"), "x")
    client.config_resetstat()
    (line,) = found("keys.endless")
    assert "endless" in line
    (line,) = found("keys.undeclared")
    assert line.startswith("10,000 keys strangers:")
    steps = client.info("commandstats")["cmdstat_scan"]["calls"]
    assert steps >= 2 * 30_000 / (2 * keyspace._PAGES[-1])  # how long each takes is measured by `python -m benchmarks.doctor`


def test_a_step_is_as_long_as_the_server_is_fast() -> None:
    assert keyspace._next_page(300, 2 * keyspace._STEP_US) == 150
    assert keyspace._next_page(300, keyspace._STEP_US * 5 // 6) == 360
    assert keyspace._next_page(300, 0) == keyspace._next_page(300, keyspace._STEP_US // 2) == 375
    assert (keyspace._next_page(100, 1_000_000), keyspace._next_page(1500, 1)) == (100, 1500)


# ---- streams


def test_a_stream_that_is_not_read_is_found(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    redis.xgroup_create(keys.intake(), "holdfast", id="0", mkstream=True)
    assert found("streams.lag") == []
    redis.eval("for n = 1, 10001 do redis.call('XADD', KEYS[1], '*', 'task', 'x') end", 1, keys.intake())
    assert "10,001 entries to read" in found("streams.lag")[0]
    redis.xreadgroup("holdfast", "one", {keys.intake(): ">"}, count=1)
    monkeypatch.setattr(streams, "_HELD_S", 0.1)
    eventually(lambda: any("holds 1 entries" in line for line in found("streams.lag")))


def test_entries_that_were_set_aside_are_found(redis: Redis) -> None:
    assert found("streams.dead") == []
    redis.xadd(keys.dead(keys.intake()), {"a": "b"})
    assert found("streams.dead") == [f"1 entries of {keys.intake()} were set aside"]


def test_consumers_that_do_nothing_are_found_and_those_without_entries_mended(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.xgroup_create(keys.intake(), "holdfast", id="0", mkstream=True)
    redis.xadd(keys.intake(), {"task": "x"})
    redis.xreadgroup("holdfast", "holds", {keys.intake(): ">"})
    redis.xgroup_createconsumer(keys.intake(), "holdfast", "idle")
    assert found("streams.idle-consumers") == []
    monkeypatch.setattr(streams, "_IDLE_S", 0.05)
    eventually(lambda: len(found("streams.idle-consumers")) == 2)
    mend(app, examine(app).findings)
    assert [one["name"] for one in redis.xinfo_consumers(keys.intake(), "holdfast")] == [b"holds"]


# ---- queues


def test_a_queue_beyond_its_window_is_found(conf: Conf, redis: Redis) -> None:
    conf(window=10)
    redis.lpush("default", *["{}"] * 120)
    assert found("queues.over-window") == []
    redis.lpush("default", "{}")
    assert "121 messages" in found("queues.over-window")[0]


def test_a_queue_that_falls_behind_is_found(db: Conn) -> None:
    job = add.apply_async((1, 1), countdown=3600).id
    assert found("queues.behind") == []
    db.execute(
        "UPDATE jobs SET state = 'queued', available_at = clock_timestamp() - interval '20 minutes', "
        "created_at = clock_timestamp() - interval '20 minutes' WHERE id = %s", (job,),
    )  # fmt: skip
    assert "1 jobs waiting" in found("queues.behind")[0]


def test_jobs_of_an_old_life_of_the_broker_are_found(redis: Redis) -> None:
    add.delay(1, 1)
    assert found("queues.epoch") == []
    redis.expire(keys.epoch(), 1000)
    assert "time to live" in found("queues.epoch")[0]
    redis.flushall()
    assert "the epoch of the broker is gone, and 1 jobs" in found("queues.epoch")[0]


# ---- the fleet


def test_a_worker_that_died_unseen_is_found_and_what_it_left_undone(conf: Conf, bench: Bench, db: Conn) -> None:
    conf(node_beat_s=0.3, node_dead_s=1)
    job = add.delay(1, 1).id
    assert found("workers.silent") == found("jobs.undone") == []
    db.execute("UPDATE worker_nodes SET beat_at = clock_timestamp() - interval '31 seconds'")
    db.execute(
        "UPDATE jobs SET state = 'running', claimed_at = clock_timestamp() - interval '1 hour', claim_token = gen_random_uuid(), "
        "worker_id = (SELECT id FROM worker_nodes), dispatch_epoch = NULL WHERE id = %s", (job,),
    )  # fmt: skip
    eventually(lambda: found("workers.silent"), 40)  # Postgres may have been restarted a moment ago, and then it waits
    assert "1 jobs run on workers that are gone" in found("jobs.undone")[0]


def test_a_schedule_that_does_not_fire_is_found(db: Conn) -> None:
    insert = "INSERT INTO schedules (name, task, every_s, next_tick, anchor) VALUES ('report', 'x', 60, %s, now())"
    db.execute(insert, (datetime.now(UTC) + timedelta(minutes=1),))
    assert found("schedules.stuck") == []
    db.execute("UPDATE schedules SET next_tick = clock_timestamp() - interval '2 minutes'")
    assert "'report'" in found("schedules.stuck")[0]


# ---- Postgres


def test_a_schema_that_is_not_migrated_is_found(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", create_database(stack.postgres.url, "doctor_empty"))
    harness.forget()
    report = examine(app)
    harness.forget()
    drop_database(stack.postgres.url, "doctor_empty")
    assert "holdfast db upgrade" in found("postgres.schema", report)[0]
    assert "workers.silent" in report.skipped


def test_a_transaction_that_somebody_forgot_is_found(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with psycopg.connect(env["DATABASE_URL"], application_name="forgetful") as conn:
        conn.execute("SELECT 1")
        assert found("postgres.idle-in-transaction") == []
        monkeypatch.setattr(postgres, "_IDLE_S", 0.05)
        eventually(lambda: "forgetful" in found("postgres.idle-in-transaction")[0])


def test_an_index_that_is_mostly_empty_is_found(db: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_BLOATED_BYTES", 1_000_000)
    db.execute(
        "INSERT INTO job_keys (caller, key, payload_hash, job_id, expires_at) "
        "SELECT 'x', md5(n::text), '', n, 'infinity' FROM generate_series(1, 30000) n"
    )
    db.execute("VACUUM ANALYZE job_keys")
    assert found("postgres.index-bloat") == []
    db.execute("DELETE FROM job_keys WHERE key > '02'")
    db.execute("VACUUM (ANALYZE, TRUNCATE false) job_keys")
    assert "job_keys" in found("postgres.index-bloat")[0]
    db.execute("TRUNCATE job_keys")


def test_missing_and_old_partitions_are_found_and_mended(stack: Stack, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = create_database(stack.postgres.url, "doctor_partitions", template)
    monkeypatch.setenv("DATABASE_URL", url)
    harness.forget()
    try:
        assert "0 days ahead" in found("postgres.partitions")[0]
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("CREATE SCHEMA elsewhere")
            conn.execute("SET search_path = elsewhere, public")
            assert len(history.keep_up(conn)["made"]) == 8
            assert history.keep_up(conn)["made"] == []
        assert found("postgres.partitions") == []
        with psycopg.connect(url, autocommit=True) as conn:
            today = datetime.now(UTC).date()
            for day in range(1, 8):
                conn.execute(f"DROP TABLE job_history_{today + timedelta(days=day):%Y%m%d}")
            old = today - timedelta(days=40)
            after = old + timedelta(days=1)
            partition = f"PARTITION OF job_history FOR VALUES FROM ('{old}') TO ('{after}')"
            conn.execute(f"CREATE TABLE elsewhere.job_history_{old:%Y%m%d} {partition}")
        report = examine(app)
        assert len(found("postgres.partitions", report)) == 2
        assert "7 partitions made and 1 dropped" in mend(app, report.findings)["postgres.partitions"]
        assert found("postgres.partitions") == []
    finally:
        harness.forget()
        drop_database(stack.postgres.url, "doctor_partitions")


# ---- clocks and clients


def test_clocks_that_differ_are_found(db: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("clocks.skew") == []
    now = clock.now
    monkeypatch.setattr(clock, "now", lambda: now() - timedelta(seconds=5))
    lines = found("clocks.skew")
    assert len(lines) == 3
    assert all("ahead of" in line for line in lines)


def test_the_clock_of_a_host_with_workers_that_is_off_is_found(db: Conn, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("clocks.skew") == []
    now = clock.now
    with monkeypatch.context() as patch, statement() as conn:
        patch.setattr(clock, "now", lambda: now() + timedelta(seconds=7))
        nodes.beat(conn, uuid4(), "w9", "far.example.com", 9, ["default"])
    assert found("clocks.skew") == ["the clock of far.example.com, where workers run, is 7.0 s ahead of that of Postgres"]


def test_the_clock_of_one_server_that_is_off_is_found_alone(stack: Stack, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = create_database(stack.postgres.url, "doctor_clock", template)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA wrong")
        conn.execute(
            "CREATE FUNCTION wrong.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
            "$$ SELECT pg_catalog.clock_timestamp() - interval '9 seconds' $$"
        )
        conn.execute("ALTER DATABASE doctor_clock SET search_path = wrong, pg_catalog, public")
    monkeypatch.setenv("DATABASE_URL", url)
    harness.forget()
    (line,) = found("clocks.skew")
    harness.forget()
    drop_database(stack.postgres.url, "doctor_clock")
    assert line.startswith("the clock of Postgres is 9.0 s behind") or line.startswith("the clock of Postgres is 8.9 s behind")


def test_a_client_that_repeats_commands_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("clients.retry") == []
    monkeypatch.setitem(app.conf.broker_transport_options, "retry_on_timeout", True)
    assert "broker_transport_options" in found("clients.retry")[0]


# ---- who can get in


def test_a_default_user_that_needs_no_password_is_found(own: Callable[[str], Redis]) -> None:
    client = own("redis")
    assert found("redis.default-user") == []
    client.execute_command("ACL", "SETUSER", "default", "nopass")
    assert "needs no password" in found("redis.default-user")[0]


def test_beyond_this_machine_the_default_user_and_clear_text_are_found(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found("network.clear-text") == []
    for name, url in env.items():
        # This machine by an address that does not say so.
        monkeypatch.setenv(name, url.replace("127.0.0.1", "0.0.0.0"))
    harness.forget()
    assert len(found("redis.default-user")) == 2
    assert len(found("network.clear-text")) == 3
    monkeypatch.setenv("DATABASE_URL", env["DATABASE_URL"].replace("127.0.0.1", "0.0.0.0") + "?sslmode=verify-full")
    monkeypatch.setenv("REDIS_URL", env["REDIS_URL"].replace("redis://", "rediss://").replace("127.0.0.1", "0.0.0.0"))
    harness.forget()
    assert len(found("network.clear-text")) == 1


def test_passwords_that_everybody_knows_are_found(
    conf: Conf, own: Callable[[str], Redis], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = own("redis")
    assert found("secrets.default") == []
    client.config_set("requirepass", "dev-only")
    monkeypatch.setenv("REDIS_URL", harness_url(client).replace("an-own-secret", "dev-only"))
    conf(flower_auth="admin:dev-only")
    assert [line.split()[3] for line in found("secrets.default")] == ["REDIS_URL", "HOLDFAST_FLOWER_AUTH"]


def test_the_password_of_the_compose_file_is_among_those_that_are_found() -> None:
    from worker.doctor.security import _KNOWN

    text = (harness.ROOT / "docker-compose.yml").read_text()
    assert set(re.findall(r":-(?:admin:)?([a-z]+-only)\}", text)) <= _KNOWN


# ---- how it is asked


def test_the_exit_code_tells_how_bad_it_is(kept_up: None, redis: Redis, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["doctor"]) == 0
    assert capsys.readouterr().out == "nothing was found\n"
    redis.set("stranger", "x", ex=60)
    assert invoke(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "warning" in out
    assert "keys.undeclared" in out
    redis.set(keys.epoch(), "x", ex=1000)
    assert invoke(["doctor", "--json"]) == 6
    told = json.loads(capsys.readouterr().out)
    assert told["worst"] == "critical"
    assert [finding["check"] for finding in told["findings"]] == ["queues.epoch", "keys.undeclared"]
    assert set(told["findings"][0]) == {"check", "severity", "found", "why", "mend", "fixable"}


def test_fix_mends_what_is_safe_and_looks_again(kept_up: None, cache: Redis, capsys: pytest.CaptureFixture[str]) -> None:
    cache.set(keys.cache_entry("a"), "x")
    assert invoke(["doctor"]) == 1
    capsys.readouterr()
    assert invoke(["doctor", "--fix", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["mended"], told["findings"]) == ({"keys.endless": "1 keys of the cache end in a day"}, [])
    assert 0 < cache.ttl(keys.cache_entry("a")) <= 86_400


def test_the_gateway_tells_it_to_operators_alone_and_its_document_says_so(kept_up: None, redis: Redis) -> None:
    door = Door().start()
    try:
        asked = door.client().get("/openapi.json").json()["paths"]["/readyz"]["get"]
        assert asked["security"] == [{}, {"key": []}]
        assert {"200", "401", "403", "422", "503"} <= asked["responses"].keys()
        assert door.client().get("/readyz", params={"deep": "perhaps"}).status_code == 422
        assert door.client().get("/readyz", params={"deep": "1"}).status_code == 401
        assert door.client(key_for("reader")).get("/readyz", params={"deep": "1"}).status_code == 403
        redis.set("stranger", "x", ex=60)
        told = door.client(key_for("boss", "admin")).get("/readyz", params={"deep": "1"})
        assert (told.status_code, told.json()["status"], told.json()["worst"]) == (200, "ready", "warning")
        assert told.json()["findings"][0]["check"] == "keys.undeclared"
        assert door.client().get("/readyz").json() == {"status": "ready", "postgres": "ready", "redis": "ready"}
    finally:
        door.stop()


def test_what_a_server_does_not_allow_is_said_and_not_taken_for_sound(
    kept_up: None, own: Callable[[str], Redis], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = own("redis")
    client.execute_command("ACL", "SETUSER", "little", "on", ">an-own-secret", "~*", "&*", "+@all", "-slowlog", "-acl")
    monkeypatch.setenv("REDIS_URL", harness_url(client).replace("//:", "//little:"))
    harness.forget()
    report = examine(app)
    assert {"redis.slow", "redis.default-user"} <= report.skipped.keys()
    assert report.worst is None
