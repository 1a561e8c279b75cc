"""Holders that are paused past their lease, a thousand times: what the fence guards stays right."""

from __future__ import annotations

import threading
import time
from collections import Counter
from random import Random
from typing import Any

import psycopg
import pytest

from tests import harness
from worker.db import statement
from worker.errors import LockBusy
from worker.locks import Lock

COUNTERS, HOLDERS, PAUSES_EACH = 10, 4, 25
TTL_S = 0.03

#: Whoever takes the lock raises the fence and reads, in one statement: from then on no earlier holder can write.
_BEGIN = "UPDATE guarded SET fence = %(fence)s WHERE name = %(name)s AND fence < %(fence)s RETURNING value"
_WRITE = "UPDATE guarded SET value = %(value)s WHERE name = %(name)s AND fence = %(fence)s RETURNING value"
#: What those do who do not look at the fence.
_UNGUARDED = "UPDATE unguarded SET value = %(value)s WHERE name = %(name)s"


def test_a_thousand_pauses_past_the_lease_and_no_stale_write_is_accepted(db: psycopg.Connection[Any]) -> None:
    for table in ("guarded", "unguarded"):
        db.execute(f"CREATE TABLE {table} (name text PRIMARY KEY, value int, fence int8)")
        db.execute(f"INSERT INTO {table} SELECT n::text, 0, 0 FROM generate_series(1, {COUNTERS}) n")
    accepted: Counter[str] = Counter()
    told: Counter[bool] = Counter()
    stale: Counter[str] = Counter()
    guard = threading.Lock()

    def holder(name: str, seed: int) -> None:
        rng, pauses = Random(seed), 0
        lock = Lock(f"counter {name}", TTL_S, renew=False)
        while pauses < PAUSES_EACH:
            try:
                held = lock.acquire(60)
            except LockBusy:
                continue
            with statement() as conn:
                row = conn.execute(_BEGIN, {"name": name, "fence": held.fence}).fetchone()
                value = conn.execute("SELECT value FROM unguarded WHERE name = %s", (name,)).fetchone()
            paused = rng.random() < 0.8
            if paused:
                pauses += 1
                time.sleep(TTL_S * rng.uniform(1.2, 2.0))
            lost = held.lost.is_set()
            with statement() as conn:
                wrote = row and conn.execute(_WRITE, {"name": name, "fence": held.fence, "value": row[0] + 1}).fetchone()
                conn.execute(_UNGUARDED, {"name": name, "value": value[0] + 1 if value else 0})
            with guard:
                accepted[name] += bool(wrote)
                told[lost] += paused
                stale[name] += not wrote
            held.release()

    who = [(str(n), n * 100 + m) for n in range(1, COUNTERS + 1) for m in range(HOLDERS)]
    threads = [threading.Thread(target=holder, args=args) for args in who]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert sum(told.values()) == COUNTERS * HOLDERS * PAUSES_EACH
    assert told[False] == 0, "a holder was paused past its lease and did not know"
    values = dict(db.execute("SELECT name, value FROM guarded").fetchall())
    assert values == dict(accepted), "a write was lost: one that was stale was accepted"
    assert sum(stale.values()) > 100, "hardly anybody came too late: this shows nothing"
    lost_writes = sum(accepted.values()) + sum(stale.values()) - sum(n for (n,) in db.execute("SELECT value FROM unguarded"))
    assert lost_writes > 100, "without the fence nothing went wrong either: this shows nothing"
    db.execute("DROP TABLE guarded, unguarded")


@pytest.fixture(autouse=True)
def _leave_no_connection(env: dict[str, str]) -> Any:
    yield
    harness.forget()
