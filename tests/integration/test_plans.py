"""The ledger's statements go by an index, also where the table was empty when they were planned."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import psycopg

from tests import sample_tasks
from tests.integration.conftest import Bench
from worker.app import enqueue_many
from worker.db import raw, session, statement
from worker.ledger import dispatch
from worker.ledger import gate as gate_of_queue
from worker.ledger.claim import try_claim
from worker.ledger.settle import Guard, Outcome, finish
from worker.states import JobState

#: How often a statement is run before psycopg and Postgres keep its plan for good.
_KEPT_AFTER = 12


def _go_through(job_ids: list[str]) -> None:
    """Run what dispatches, claims and settles jobs."""
    with statement() as conn:
        dispatch.waiting_queues(conn)
        dispatch.take_due(conn, "default", 500, "life")
        dispatch.suspects(conn, 0.0)
        dispatch.lost(conn, "default", [5], 0.0, None)
        dispatch.take_due(conn, "default", 500, "life")
        dispatch.forgotten(conn, "another life")
        dispatch.take_due(conn, "default", 500, "life")
        dispatch.over(conn)
    for job_id in job_ids:
        token = uuid4()
        try_claim(job_id, 0, token=token, worker_id=uuid4(), delivery_tag="tag")
        with session() as own, own.begin():
            finish(raw(own), job_id, Guard.token(token), Outcome(JobState.SUCCEEDED))


def test_a_burst_into_a_table_that_was_empty_is_not_read_whole(env: dict[str, str], db: psycopg.Connection[Any]) -> None:
    db.execute("ALTER TABLE jobs SET (autovacuum_enabled = false)")  # which would have the plans made anew
    db.execute("VACUUM ANALYZE jobs")
    for _ in range(_KEPT_AFTER):
        _go_through(["nobody"])
    ids = enqueue_many(sample_tasks.add, [(1, 2)] * 3000)
    before = _times_read_whole(db)
    _go_through(ids[:5])
    assert _times_read_whole(db) == before
    assert db.execute("SELECT count(*) FROM job_history").fetchone() == (5,)


def _times_read_whole(db: psycopg.Connection[Any]) -> int:
    with statement() as conn:
        conn.execute("SELECT pg_stat_force_next_flush()")
    with session() as own, own.begin():  # committed: psycopg forgets its plans with a transaction that is rolled back
        raw(own).execute("SELECT pg_stat_force_next_flush()")
    row = db.execute("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'jobs'").fetchone()
    assert row is not None
    return int(row[0])


def test_jobs_that_are_not_due_yet_cost_a_round_nothing(env: dict[str, str], db: psycopg.Connection[Any], bench: Bench) -> None:
    """Jobs with an ETA and long lives wait by the million, limited or not; only those that are due are read."""
    for gate in (None, "[]"):
        first = sample_tasks.add.delay(1, 2)
        db.execute("UPDATE jobs SET gate = %s, dispatch_epoch = NULL, dispatched_at = NULL WHERE id = %s", (gate, first.id))
        db.execute(
            "INSERT INTO jobs (id, task, queue, priority, state, message, args, kwargs, available_at, expires_at, gate) "
            "SELECT id || n, task, queue, 5, 'scheduled', message, args, kwargs, available_at + interval '1 day', "
            "       available_at + interval '2 days', gate FROM jobs, generate_series(1, 3000) n WHERE id = %s",
            (first.id,),
        )
    db.execute("ANALYZE jobs")
    db.execute("SET enable_seqscan = off")
    values = {"queue": "default", "room": 500, "epoch": "life", "gate": "[]", "changed_at": None}
    for sql in (dispatch._TAKE, gate_of_queue._HEAD, dispatch._OVER):
        plan = db.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", values).fetchone()
        assert plan is not None
        assert _removed(plan[0][0]["Plan"]) < 100, sql


def _removed(plan: dict[str, Any]) -> float:
    """Return how many rows were read in vain, below this node of a plan."""
    here = sum(plan.get(f"Rows Removed by {what}", 0) * plan["Actual Loops"] for what in ("Filter", "Index Recheck"))
    return here + sum(_removed(inner) for inner in plan.get("Plans", ()))
