"""What Postgres says of the demo's jobs, read beside the ledger: their states, and the effects they had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.cli.demo.plan import Entrance
from worker.engine import beat
from worker.ledger import schedules
from worker.ledger.ticks import interval_after

#: The name of the schedule that ticks while the demo runs.
TICK = "demo tick"
TICK_S = 1.0

#: Without a unique constraint, on purpose: a job that takes effect twice must show. The demo's database is its own and is thrown
#: away, so this table needs no migration.
_CREATE = "CREATE TABLE demo_effects (job_id text NOT NULL, entrance text NOT NULL)"
_TAKE_EFFECT = text("INSERT INTO demo_effects (job_id, entrance) VALUES (:job_id, :entrance)")
_EFFECTS = "SELECT job_id, count(*) FROM demo_effects GROUP BY job_id"
_STATES = "SELECT id, state FROM jobs UNION ALL SELECT id, state FROM job_history"
_KNOWN = "SELECT id FROM jobs WHERE id = ANY(%(ids)s) UNION SELECT id FROM job_history WHERE id = ANY(%(ids)s)"
_BY_KEY = """
SELECT idempotency_key, id FROM jobs WHERE caller = %(caller)s AND idempotency_key = ANY(%(keys)s)
UNION ALL SELECT idempotency_key, id FROM job_history WHERE caller = %(caller)s AND idempotency_key = ANY(%(keys)s)
"""
_ENQUEUE = "SELECT holdfast.enqueue('demo.effect', jsonb_build_array(%s::text, %s::float8))"
_DIED = "SELECT count(*) FROM attempts WHERE outcome = 'crashed'"
_NODE = """
SELECT id, pid FROM worker_nodes WHERE name LIKE %s AND left_at IS NULL ORDER BY started_at DESC LIMIT 1
"""
_NODES = "SELECT count(*) FROM worker_nodes WHERE left_at IS NULL"
_IN_HAND = "SELECT count(*) FROM jobs WHERE state = 'running' AND worker_id = %s"
_TICKED = "SELECT next_tick > clock_timestamp() FROM schedules WHERE name = %s FOR UPDATE"


@dataclass(frozen=True)
class Seen:
    """What the record held at one moment."""

    states: dict[str, str]
    #: Rows of effect by job.
    effects: dict[str, int]
    #: The jobs that the schedule has promised: one for each tick up to its last.
    ticks: list[str]
    #: Attempts that died with their worker.
    died: int


def create(conn: psycopg.Connection[Any]) -> None:
    """Make the table of effects, and the schedule."""
    conn.execute(_CREATE)
    spec = schedules.Spec(TICK, "demo.effect", kwargs={"entrance": Entrance.SCHEDULE}, every_s=TICK_S, catch_up="all")
    schedules.add(conn, spec)


def take_effect(session: Session, job_id: str, entrance: str) -> None:
    """Note an effect of a job in its own transaction."""
    session.execute(_TAKE_EFFECT, {"job_id": job_id, "entrance": entrance})


def see(conn: psycopg.Connection[Any]) -> Seen:
    """Return what the record holds.

    In this order: the effects are those of a later moment than the states, so a job that has ended has had its effect.
    """
    ticks = _ticks(conn)
    states = dict(conn.execute(_STATES).fetchall())
    return Seen(states, dict(conn.execute(_EFFECTS).fetchall()), ticks, _one(conn, _DIED))


def _ticks(conn: psycopg.Connection[Any]) -> list[str]:
    row = schedules.get(conn, TICK)
    last, tick, ids = row["last_tick"], row["anchor"], []
    while last is not None and tick < last:
        tick = interval_after(tick, row["anchor"], TICK_S)
        ids.append(beat.job_id(TICK, tick))
    return ids


def try_stop_ticking(conn: psycopg.Connection[Any]) -> bool:
    """Pause the schedule unless a tick that is due has not been made a job yet; tell whether it is paused."""
    with conn.transaction():
        row = conn.execute(_TICKED, (TICK,)).fetchone()  # locks the row, so that no beat moves it meanwhile
        if row and row[0]:
            schedules.set_enabled(conn, TICK, False)
        return bool(row and row[0])


def known(conn: psycopg.Connection[Any], ids: Sequence[str]) -> set[str]:
    """Return those of the ids that have a row."""
    return {row[0] for row in conn.execute(_KNOWN, {"ids": list(ids)}).fetchall()}


def by_key(conn: psycopg.Connection[Any], caller: str, keys: Sequence[str]) -> dict[str, str]:
    """Return the ids of a caller's jobs by their idempotency keys; those that have no row are left out."""
    return dict(conn.execute(_BY_KEY, {"caller": caller, "keys": list(keys)}).fetchall())


def enqueue(conn: psycopg.Connection[Any], entrance: str, work_ms: float) -> str:
    """Enqueue a job by SQL alone and return its id."""
    row = conn.execute(_ENQUEUE, (entrance, work_ms)).fetchone()
    assert row is not None
    return str(row[0])


def workers(conn: psycopg.Connection[Any]) -> int:
    """Return how many workers have registered and not left."""
    return _one(conn, _NODES)


def worker(conn: psycopg.Connection[Any], name: str) -> tuple[Any, int] | None:
    """Return node id and pid of the newest living worker of this name."""
    return conn.execute(_NODE, (f"{name}@%",)).fetchone()


def in_hand(conn: psycopg.Connection[Any], node_id: Any) -> int:
    """Return how many jobs a worker is running."""
    return _one(conn, _IN_HAND, node_id)


def _one(conn: psycopg.Connection[Any], sql: str, *values: Any) -> int:
    row = conn.execute(sql, values).fetchone()
    return int(row[0]) if row else 0
