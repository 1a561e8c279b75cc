"""Switches over real workers: children of a pool that was forked before the switch was set, and workers on-line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests import sample_tasks as t
from tests.acceptance.conftest import House
from tests.harness import Worker, eventually
from worker.db import statement
from worker.engine.node import FLEET
from worker.ledger import flags
from worker.live import flag

WAIT = 25
ADD = f"task:{t.add.name}"


@pytest.fixture(scope="module", autouse=True)
def worker(house: House) -> Worker:
    """A prefork worker."""
    return house.worker("prefork", 2)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    with statement() as conn:
        if flags.listed(conn):
            flags.remove(conn, ADD, actor="test")
    flags.forget()


def put(**rule: Any) -> None:
    with statement() as conn:
        flags.put(conn, flag(ADD, **rule), actor="test")


def test_switch_holds_back_what_a_running_fleet_is_sent_and_lets_it_go_on(house: House) -> None:
    assert t.add.delay(1, 1).get(timeout=WAIT) == 2
    put(on=False)
    eventually(lambda: t.add.delay(1, 1) and house.sql("SELECT 1 FROM jobs WHERE dispatch_epoch LIKE 'parked:%%'"), timeout=WAIT)
    results = [t.add.delay(n, n) for n in range(30)]
    assert t.echo.delay("free").get(timeout=WAIT) == [["free"], {}], "other tasks run on"
    eventually(
        lambda: house.sql("SELECT count(*) FROM jobs WHERE dispatch_epoch LIKE 'parked:%%'")[0][0] >= 30, timeout=WAIT
    )
    ids = [result.id for result in results]
    assert house.sql("SELECT count(*) FROM job_history WHERE id = ANY(%s)", ids) == [(0,)]
    put(on=True)
    assert [result.get(timeout=WAIT) for result in results] == [2 * n for n in range(30)]
    assert house.sql("SELECT DISTINCT attempt FROM job_history WHERE id = ANY(%s)", ids) == [(1,)]


def test_switch_goes_on_while_redis_forgets_everything(house: House) -> None:
    put(on=False)
    eventually(lambda: t.add.delay(1, 1) and house.sql("SELECT 1 FROM jobs WHERE dispatch_epoch LIKE 'parked:%%'"), timeout=WAIT)
    results = [t.add.delay(n, n) for n in range(10)]
    house.redis.flushall()
    house.cache.flushall()
    time.sleep(1.0)
    ids = [result.id for result in results]
    assert house.sql("SELECT count(*) FROM job_history WHERE id = ANY(%s)", ids) == [(0,)]
    put(on=True)
    assert [result.get(timeout=WAIT) for result in results] == [2 * n for n in range(10)]


def test_worker_is_on_line(worker: Worker) -> None:
    eventually(FLEET.online, timeout=WAIT)
