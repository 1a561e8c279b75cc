"""The maintenance jobs: partitions and pruning, and an audit that sees what is off and changes nothing."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.harness import eventually
from tests.integration.conftest import Bench
from tests.sample_tasks import add
from worker.app import app
from worker.engine import beat
from worker.ledger import audit

_JOB = """
INSERT INTO jobs (id, task, queue, state, message, group_id, worker_id, claim_token, claimed_at, dispatch_epoch, dispatched_at,
                  available_at)
VALUES (%(id)s, 't', %(queue)s, %(state)s, %(message)s, %(group)s, %(worker)s, %(token)s,
        clock_timestamp() - %(claimed)s * interval '1 second', %(epoch)s, clock_timestamp() - %(sent)s * interval '1 second',
        clock_timestamp() - %(due)s * interval '1 second')
"""
_NODE = """
INSERT INTO worker_nodes (id, name, host, pid, queues, beat_at, left_at)
VALUES (%s, 'w', 'h', 1, %s, clock_timestamp() - %s * interval '1 second', clock_timestamp() - %s * interval '1 second')
"""
_CHORD = """
INSERT INTO chords (group_id, size, done_at, created_at)
VALUES (%s, %s, CASE WHEN %s THEN clock_timestamp() END, clock_timestamp() - %s * interval '1 second')
"""


@pytest.fixture
def conn(env: dict[str, str]) -> Iterator[psycopg.Connection[Any]]:
    app.loader.import_default_modules()
    with psycopg.connect(env["DATABASE_URL"], autocommit=True) as conn:
        yield conn


def add_job(conn: psycopg.Connection[Any], job_id: str, state: str = "queued", *, queue: str = "default", **values: Any) -> None:
    given = dict.fromkeys(("group", "worker", "token", "claimed", "epoch", "sent")) | {"due": 0, "message": "{}"}
    if state == "running":
        given |= {"token": uuid.uuid4(), "claimed": 0}
    conn.execute(_JOB, {**given, "id": job_id, "state": state, "queue": queue, **values})


def add_node(conn: psycopg.Connection[Any], *queues: str, silent: float = 0, left: float | None = None) -> uuid.UUID:
    node_id = uuid.uuid4()
    conn.execute(_NODE, (node_id, list(queues) or ["default"], silent, left))
    return node_id


def look(conn: psycopg.Connection[Any]) -> dict[str, Any]:
    return audit.look(conn, after_s=30)


def test_upkeep_makes_partitions_drops_old_ones_and_prunes(conn: psycopg.Connection[Any]) -> None:
    conn.execute("CREATE TABLE job_history_20200101 PARTITION OF job_history FOR VALUES FROM ('2020-01-01') TO ('2020-01-02')")
    add_node(conn, left=100_000)
    changed = app.tasks["maintenance.upkeep"].apply().get()
    assert changed["dropped"] == ["job_history_20200101"]
    assert conn.execute("SELECT count(*) FROM worker_nodes").fetchone() == (0,)
    assert look(conn)["days_ahead"] == 7
    assert app.tasks["maintenance.upkeep"].apply().get() == {"made": [], "dropped": []}


def test_long_reader_of_history_holds_up_neither_the_end_of_jobs_nor_for_ever_the_upkeep(
    env: dict[str, str], conn: psycopg.Connection[Any], bench: Bench
) -> None:
    farthest = app.tasks["maintenance.upkeep"].apply().get()["made"][-1]
    conn.execute(f"DROP TABLE {farthest}")
    conn.execute("CREATE TABLE job_history_20200101 PARTITION OF job_history FOR VALUES FROM ('2020-01-01') TO ('2020-01-02')")
    with psycopg.connect(env["DATABASE_URL"]) as reader, ThreadPoolExecutor(2) as pool:
        reader.execute("SELECT count(*) FROM job_history")
        upkeep = pool.submit(app.tasks["maintenance.upkeep"].apply)
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        eventually(lambda: conn.execute(waits).fetchone() != (0,), what="the upkeep waiting for the reader")
        ids = []
        while not upkeep.done():
            ids.append(add.delay(1, 2).id)
            pool.submit(bench.work).result(timeout=20)
        assert upkeep.result().get() == {"made": [], "dropped": []}, "it is left for the next time"
        ids.append(add.delay(1, 2).id)
        pool.submit(bench.work).result(timeout=20)
        ended = conn.execute("SELECT count(*) FROM job_history WHERE id = ANY(%s)", (ids,)).fetchone()
        assert ended == (len(ids),), "jobs end while the reader still reads"
    assert app.tasks["maintenance.upkeep"].apply().get() == {"made": [farthest], "dropped": ["job_history_20200101"]}


def test_sound_ledger_has_no_findings_and_is_left_as_it_is(conn: psycopg.Connection[Any]) -> None:
    app.tasks["maintenance.upkeep"].apply()
    alive, gone = add_node(conn, "default"), add_node(conn, "default", left=5)
    add_job(conn, "works", "running", worker=alive, claimed=5000)
    add_job(conn, "to be rescued in a moment", "running", worker=gone, claimed=5000)
    add_job(conn, "waits in redis", epoch="e", sent=500)
    add_job(conn, "waits behind the window", due=500)
    add_job(conn, "later", "scheduled", due=-500)
    conn.execute("INSERT INTO queues (name, paused) VALUES ('paused', true)")
    add_job(conn, "paused", queue="paused", due=500)
    for group, size, done, age in (("done", 2, True, 9999), ("young", 2, False, 9), ("saved group", None, False, 9999)):
        conn.execute(_CHORD, (group, size, done, age))
    for group in ("alive", "alive in a chain"):
        conn.execute(_CHORD, (group, 2, False, 9999))
    add_job(conn, "part", "scheduled", group="alive", due=-500)
    chain = json.dumps([[], {}, {"chain": [{"options": {"group_id": "alive in a chain"}}]}])
    add_job(conn, "head", "scheduled", message=json.dumps({"body": chain}), due=-500)
    before = conn.execute("SELECT md5(string_agg(j::text, '' ORDER BY id)) FROM jobs j").fetchone()
    report = look(conn)
    assert report["findings"] == []
    assert report["states"] == {"running": 2, "queued": 3, "scheduled": 3}
    assert 499 < report["oldest_sent_s"] < 520
    assert conn.execute("SELECT md5(string_agg(j::text, '' ORDER BY id)) FROM jobs j").fetchone() == before


def test_jobs_of_workers_that_are_gone_are_found(conn: psycopg.Connection[Any]) -> None:
    left, silent = add_node(conn, left=60), add_node(conn, silent=60)
    add_job(conn, "of one that left", "running", worker=left, claimed=100)
    add_job(conn, "of a silent one", "running", worker=silent, claimed=99)
    add_job(conn, "of a forgotten one", "running", worker=uuid.uuid4(), claimed=98)
    report = look(conn)
    assert report["orphans"] == 3
    assert report["orphan_ids"] == ["of one that left", "of a silent one", "of a forgotten one"]
    assert any("3 jobs" in line and "relay" in line for line in report["findings"])


def test_queues_that_nobody_sends_or_reads_are_found(conn: psycopg.Connection[Any]) -> None:
    add_node(conn, "default")
    add_node(conn, "mail", silent=60)
    add_job(conn, "a", queue="default", due=60)
    add_job(conn, "b", queue="mail", epoch="e", sent=60)
    add_job(conn, "c", queue="reports", due=20)
    report = look(conn)
    assert (report["unsent_queues"], report["unserved_queues"]) == (["default"], ["mail"])


def test_chord_of_which_nothing_lives_is_found(conn: psycopg.Connection[Any]) -> None:
    conn.execute(_CHORD, ("g1", 2, False, 9999))
    add_job(conn, "of another", group="g2")
    assert look(conn)["stuck_chords"] == ["g1"]


def test_missing_partition_for_tomorrow_is_found(conn: psycopg.Connection[Any]) -> None:
    app.tasks["maintenance.upkeep"].apply()
    for (name,) in conn.execute("SELECT relid::text FROM pg_partition_tree('job_history') WHERE isleaf").fetchall():
        if not name.endswith("default"):
            conn.execute(f"DROP TABLE {name}")
    assert any("partition" in line for line in look(conn)["findings"])


def test_audit_warns_of_each_finding(conn: psycopg.Connection[Any], capfd: pytest.CaptureFixture[str]) -> None:
    from worker import telemetry

    telemetry.configure("INFO")
    conn.execute(_CHORD, ("g1", 2, False, 9999))
    report = app.tasks["maintenance.audit"].apply().get()
    assert report["stuck_chords"] == ["g1"]
    assert "chords without a living part are not done: g1" in capfd.readouterr().err


def test_maintenance_is_scheduled(env: dict[str, str]) -> None:
    app.loader.import_default_modules()
    declared = {spec.name: spec.task for spec in beat.declared(app)}
    assert declared.keys() >= {"maintenance.upkeep", "maintenance.audit"}
    assert set(declared.values()) <= app.tasks.keys()
