"""This worker as the fleet sees it: its id, its sign of life in Postgres, and a look for jobs it lost track of."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg

from worker.db import name_connections, statement
from worker.errors import LedgerUnavailable, NotInJob
from worker.ledger import nodes
from worker.ledger.settle import Guard
from worker.live import Heart, Presence
from worker.settings import settings
from worker.telemetry import OUTAGES, log

logger = log(__name__)

#: Beats between two looks for jobs that are running by their row but not in this worker.
_LOOK_EVERY = 3

#: The workers that are on-line, by name and id.
FLEET = Presence("workers")

_id: UUID | None = None
_killing = False


def current_id() -> UUID:
    """Return the id of the worker this process belongs to; children of a pool inherit it. Raises `NotInJob` elsewhere."""
    if _id is None:
        raise NotInJob("this process is not a worker")
    return _id


def start_killing() -> None:
    """Note that this worker kills its children from now on: it was told to stop without waiting for them."""
    global _killing
    _killing = True


def is_killing() -> bool:
    """Tell whether a child of this worker that dies now does so by its worker's hand, which is no fault of its job."""
    return _killing


class Node:
    """The sign of life of one worker, given by a thread of its main process."""

    def __init__(
        self, name: str, queues: list[str], running: Callable[[], set[str]], crash: Callable[[str, Guard, str], object]
    ) -> None:
        global _id
        self.id = _id = uuid4()
        self.name, self.queues = name, queues
        name_connections(nodes.connections_of(self.id))
        self._running, self._crash = running, crash
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="holdfast-beat", daemon=True)
        # For people who look at the fleet. Whether a worker lives is decided by its row alone.
        self._heart = Heart(FLEET, name[:255], str(self.id))

    def register(self) -> None:
        """Give the first sign of life, so that no job is claimed by a node nobody knows. Raises `LedgerUnavailable`."""
        with statement() as conn:
            self._beat(conn)

    def start(self) -> None:
        """Go on giving signs of life, once the pool has forked."""
        self._thread.start()
        self._heart.start()

    def leave(self) -> None:
        """Say good-bye."""
        self._stop.set()
        try:
            with statement() as conn:
                nodes.leave(conn, self.id)
        except LedgerUnavailable:
            OUTAGES.labels("node", "found dead later").inc()
        self._heart.stop()

    def _beat(self, conn: psycopg.Connection[Any]) -> None:
        nodes.beat(conn, self.id, self.name, socket.gethostname(), os.getpid(), self.queues)

    def _run(self) -> None:
        # A connection of its own: tasks that use up the pool must not make their worker look dead.
        conn: psycopg.Connection[Any] | None = None
        beats = 0
        # The first one at once: a worker may have waited long for its pool or for Redis since it registered.
        while not self._stop.wait(settings().node_beat_s if beats else 0.0):
            beats += 1
            try:
                if conn is None or conn.closed:
                    conn = psycopg.connect(
                        settings().database_url, autocommit=True, application_name="holdfast-beat",
                        connect_timeout=max(1, round(settings().db_connect_s)), tcp_user_timeout=5000,
                    )  # fmt: skip
                self._beat(conn)
                if beats % _LOOK_EVERY == 0:
                    self._look_for_lost(conn)
            except psycopg.Error as exc:
                logger.warning("no sign of life could be given", error=str(exc).strip())
                OUTAGES.labels("node", "beat missed").inc()
                if conn is not None:
                    conn.close()
                conn = None
            except Exception:  # Whatever it is, a worker that works must not look dead for it.
                logger.exception("a sign of life could not be looked after")

    def _look_for_lost(self, conn: psycopg.Connection[Any]) -> None:
        for job_id, token in nodes.lost(conn, self.id, self._running(), settings().node_dead_s):
            logger.warning("a job was running by its row but not here", job=job_id)
            self._crash(job_id, Guard.token(token), "its worker lost it")
