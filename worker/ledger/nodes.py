"""Workers by their signs of life, all by the clock of Postgres."""

from __future__ import annotations

from collections.abc import Set
from typing import Any
from uuid import UUID

import psycopg

from worker import clock
from worker.ledger import settle
from worker.locks import release
from worker.store import keys

_BEAT = """
INSERT INTO worker_nodes (id, name, host, pid, queues, ahead_s)
VALUES (%(id)s, %(name)s, %(host)s, %(pid)s, %(queues)s, %(now)s - extract(epoch FROM clock_timestamp())::float8)
ON CONFLICT (id) DO UPDATE SET beat_at = clock_timestamp(), left_at = NULL, ahead_s = excluded.ahead_s
"""
_LEAVE = "UPDATE worker_nodes SET left_at = clock_timestamp() WHERE id = %s"
_RUNNING = """
SELECT id, claim_token FROM jobs
 WHERE state = 'running' AND worker_id = %s AND claimed_at < clock_timestamp() - %s * interval '1 second'
"""

#: The nodes that fell silent. None is, while Postgres itself has been up for less than the time of silence: they could not beat.
#: Their connections are ended: a paused worker, or one behind a cut cable, would keep what its open transactions have locked,
#: and the next attempt at its jobs would wait for it.
_DEAD = """
WITH dead AS (
  UPDATE worker_nodes SET left_at = clock_timestamp()
   WHERE left_at IS NULL AND beat_at < clock_timestamp() - %(dead_s)s * interval '1 second'
     AND pg_postmaster_start_time() < clock_timestamp() - %(dead_s)s * interval '1 second'
  RETURNING id, name)
SELECT name, (SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE application_name = %(prefix)s || dead.id AND usename = current_user)
  FROM dead
"""
#: Jobs that run on nodes that have left. A claim made since is that of a node that is coming back.
_ORPHANS = """
SELECT j.id, j.claim_token, n.name FROM jobs j LEFT JOIN worker_nodes n ON n.id = j.worker_id
 WHERE j.state = 'running' AND j.claimed_at < clock_timestamp() - %(dead_s)s * interval '1 second'
   AND (n.id IS NULL OR n.left_at IS NOT NULL)
 LIMIT 1000
"""
_CONNECTIONS = "holdfast "
_PRUNE = "DELETE FROM worker_nodes WHERE left_at < clock_timestamp() - interval '1 day'"


def connections_of(node_id: UUID) -> str:
    """Return the name of the connections on which a node's jobs run."""
    return f"{_CONNECTIONS}{node_id}"


def beat(conn: psycopg.Connection[Any], node_id: UUID, name: str, host: str, pid: int, queues: list[str]) -> None:
    """Give a sign of life; a node that was declared dead is back."""
    now = clock.now().timestamp()
    conn.execute(_BEAT, {"id": node_id, "name": name, "host": host, "pid": pid, "queues": queues, "now": now})


def leave(conn: psycopg.Connection[Any], node_id: UUID) -> None:
    """Note that the node is gone."""
    conn.execute(_LEAVE, (node_id,))


def declare_dead(conn: psycopg.Connection[Any], dead_s: float) -> list[str]:
    """Declare the nodes dead that have been silent for so long and end their connections; return their names."""
    return [row[0] for row in conn.execute(_DEAD, {"dead_s": dead_s, "prefix": _CONNECTIONS}).fetchall()]


def orphans(conn: psycopg.Connection[Any], dead_s: float) -> list[tuple[str, UUID, str]]:
    """Return id, claim token and node's name of the jobs whose node is gone."""
    return conn.execute(_ORPHANS, {"dead_s": dead_s}).fetchall()


def lost(conn: psycopg.Connection[Any], node_id: UUID, known: Set[str], older_s: float) -> list[tuple[str, UUID]]:
    """Return id and claim token of the jobs that run on this node by their row but that the node does not know."""
    rows = conn.execute(_RUNNING, (node_id, older_s)).fetchall()
    return [(job_id, token) for job_id, token in rows if job_id not in known]


def give_back_all(conn: psycopg.Connection[Any], node_id: UUID) -> list[str]:
    """Queue again everything that runs on this node, at once: it is stopping. Return the ids."""
    rows = conn.execute(_RUNNING, (node_id, 0.0)).fetchall()
    return [job_id for job_id, token in rows if _give_back(conn, job_id, token)]


def _give_back(conn: psycopg.Connection[Any], job_id: str, token: UUID) -> bool:
    # The lock goes first: whoever is sent the job next must not take that for a duplicate.
    release(keys.job_lock(job_id), token.hex)
    return settle.give_back(conn, job_id, settle.Guard.token(token), "handed back", error="its worker was stopped")


def prune(conn: psycopg.Connection[Any]) -> None:
    """Forget nodes that left a day ago."""
    conn.execute(_PRUNE)
