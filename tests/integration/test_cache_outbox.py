"""The outbox of the cache: what committed is forgotten, whoever dies and whatever is away meanwhile; what did not is not."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests.harness import ROOT, Relay, eventually
from worker.cache import Region, outbox
from worker.db import statement
from worker.embedded import Stack
from worker.engine import relay as relays
from worker.errors import CacheKeyError, StoreUnavailable

Conn = psycopg.Connection[Any]

prices = Region("prices", ttl=60)

#: A writer with nothing else to do: it changes the price and is killed after the commit, before it could invalidate.
WRITER = """
from worker import faults
from worker.cache import outbox
from worker.db import statement
from tests.integration.test_cache_outbox import prices
faults.arm("before-invalidate:kill")
with statement() as conn, outbox.transaction(conn) as changes:
    conn.execute("UPDATE price SET cents = 2")
    changes.add(keys=[prices.key("tea")])
"""


@pytest.fixture(autouse=True)
def _patient(conf: Callable[..., None]) -> None:
    """A machine that is too busy for the deadline of the cache is no outage here."""
    conf(cache_timeout_ms=2000)


@pytest.fixture
def price(db: Conn) -> Callable[[], Any]:
    """A price in Postgres, and how it is read through the cache."""
    db.execute("CREATE TABLE price (cents int); INSERT INTO price VALUES (1)")
    return lambda: prices.get_or_load("tea", lambda: db.execute("SELECT cents FROM price").fetchone()[0])  # type: ignore[index]


def owed(db: Conn) -> list[Any]:
    return db.execute("SELECT keys, tags FROM cache_outbox ORDER BY id").fetchall()


def change(**what: Any) -> None:
    with statement() as conn, outbox.transaction(conn) as changes:
        conn.execute("UPDATE price SET cents = cents + 1")
        changes.add(**(what or {"keys": [prices.key("tea")]}))


def change_and_fail() -> None:
    with statement() as conn, outbox.transaction(conn) as changes:
        conn.execute("UPDATE price SET cents = 2")
        changes.add(keys=[prices.key("tea")])
        conn.execute("SELECT 1 / 0")


def test_change_is_seen_once_it_has_committed_and_nothing_stays_owed(price: Callable[[], Any], db: Conn) -> None:
    assert price() == 1
    with statement() as conn, outbox.transaction(conn) as changes:
        conn.execute("UPDATE price SET cents = 2")
        changes.add(keys=[prices.key("tea")])
        assert price() == 1
    assert price() == 2
    assert owed(db) == []


def test_change_that_is_rolled_back_forgets_nothing(price: Callable[[], Any], db: Conn) -> None:
    assert price() == 1
    with pytest.raises(psycopg.errors.DivisionByZero):
        change_and_fail()
    assert prices.get("tea") == 1
    assert owed(db) == []


def test_transaction_that_forgets_nothing_writes_no_row(price: Callable[[], Any], db: Conn) -> None:
    before = db.execute("SELECT last_value FROM cache_outbox_id_seq").fetchone()
    with statement() as conn, outbox.transaction(conn):
        conn.execute("UPDATE price SET cents = 2")
    assert db.execute("SELECT last_value FROM cache_outbox_id_seq").fetchone() == before


def test_key_or_tag_that_is_none_is_refused_before_the_commit(price: Callable[[], Any], db: Conn) -> None:
    for wrong in ({"keys": ["k" * 2000]}, {"tags": [1]}, {"tags": "lone"}, {"keys": [""]}):
        with pytest.raises(CacheKeyError):
            change(**wrong)
    assert db.execute("SELECT cents FROM price").fetchone() == (1,)


def test_writer_that_dies_before_it_could_invalidate_leaves_it_to_the_relay(
    price: Callable[[], Any], db: Conn, launch: Callable[[Relay], Relay]
) -> None:
    launch(Relay())
    assert price() == 1
    done = subprocess.run([sys.executable, "-c", WRITER], cwd=ROOT, check=False)
    died = time.monotonic()
    assert done.returncode == -9
    assert db.execute("SELECT cents FROM price").fetchone() == (2,), "it died before its commit"
    eventually(lambda: price() == 2, 1.0, every=0.01, what="the new price, within a second")
    while time.monotonic() < died + 3.0:
        assert price() == 2, "the old price came back"
    assert owed(db) == []


def test_fault_after_the_commit_does_not_look_like_a_failed_commit(
    price: Callable[[], Any], db: Conn, fault: Callable[[str], None]
) -> None:
    assert price() == 1
    fault("before-invalidate:raise")
    change()
    assert price() == 1
    assert owed(db) == [(["prices:tea"], [])]


def test_relay_leaves_what_is_young_to_its_writer(
    price: Callable[[], Any], db: Conn, relay: relays.Relay, fault: Callable[[str], None]
) -> None:
    fault("before-invalidate:raise")
    change()
    relay.invalidate()
    assert len(owed(db)) == 1
    db.execute("UPDATE cache_outbox SET created_at = created_at - interval '1 second'")
    relay.invalidate()
    assert owed(db) == []


def test_tags_are_carried_out_as_well(
    price: Callable[[], Any], db: Conn, relay: relays.Relay, fault: Callable[[str], None]
) -> None:
    assert prices.get_or_load("all", lambda: [1], tags=["drinks"]) == [1]
    fault("before-invalidate:raise")
    change(tags=["drinks"])
    db.execute("UPDATE cache_outbox SET created_at = created_at - interval '1 second'")
    relay.invalidate()
    assert prices.get_or_load("all", lambda: [2], tags=["drinks"]) == [2]


def test_rows_stay_while_the_cache_is_away_and_are_carried_out_when_it_is_back(
    price: Callable[[], Any], db: Conn, stack: Stack, relay: relays.Relay
) -> None:
    assert price() == 1
    stack.cache.freeze()
    change()
    assert db.execute("SELECT cents FROM price").fetchone() == (2,), "the change was held up"
    assert len(owed(db)) == 1
    db.execute("UPDATE cache_outbox SET created_at = created_at - interval '1 second'")
    with pytest.raises(StoreUnavailable, match="stay owed"):
        relay.invalidate()
    assert len(owed(db)) == 1
    stack.cache.thaw()

    def carried_out() -> bool:
        relay.round()
        return owed(db) == []

    eventually(carried_out, 5)
    assert price() == 2


def test_many_are_carried_out_in_batches_by_relays_side_by_side(price: Callable[[], Any], db: Conn, relay: relays.Relay) -> None:
    db.execute(
        "INSERT INTO cache_outbox (keys, created_at) SELECT ARRAY['prices:' || n], now() - interval '1 minute'"
        " FROM generate_series(1, 450) AS n"
    )
    with psycopg.connect(db.info.dsn, password=db.info.password) as other:
        other.execute("SELECT FROM cache_outbox ORDER BY id LIMIT 10 FOR UPDATE")
        with statement() as conn:
            assert outbox.carry_out_overdue(conn) == outbox.BATCH
        relay.invalidate()
        assert len(owed(db)) == 10, "what another relay holds is passed over"
    relay.invalidate()
    assert owed(db) == []


def test_row_that_nobody_can_carry_out_does_not_hold_up_the_others(
    price: Callable[[], Any], db: Conn, relay: relays.Relay
) -> None:
    assert price() == 1
    db.execute("UPDATE price SET cents = 2")
    db.execute(
        "INSERT INTO cache_outbox (keys, tags, created_at) VALUES (ARRAY[repeat('k', 5000), ''], ARRAY['', repeat('t', 5000)], "
        "now() - interval '1 minute'), (ARRAY['prices:tea'], '{}', now() - interval '1 minute')"
    )
    relay.invalidate()
    assert owed(db) == []
    assert price() == 2


def test_what_is_sound_in_a_row_is_carried_out_beside_what_is_not(
    price: Callable[[], Any], db: Conn, relay: relays.Relay
) -> None:
    assert price() == 1
    assert prices.get_or_load("all", lambda: [1], tags=["drinks"]) == [1]
    db.execute("UPDATE price SET cents = 2")
    db.execute(
        "INSERT INTO cache_outbox (keys, tags, created_at) VALUES (ARRAY[repeat('k', 5000), 'prices:tea'], ARRAY['', 'drinks'], "
        "now() - interval '1 minute')"
    )
    relay.invalidate()
    assert owed(db) == []
    assert price() == 2
    assert prices.get_or_load("all", lambda: [2], tags=["drinks"]) == [2]


def test_entries_of_the_cache_have_a_life(price: Callable[[], Any], cache: Redis) -> None:
    price()
    change(tags=["drinks"])
    price()
    assert [key for key in cache.scan_iter() if cache.pttl(key) < 0] == []  # type: ignore[operator]
