"""The trail: an entry stands exactly when what it tells was done, and goes with history."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.console.visitors import Site, read
from worker.cache import outbox
from worker.errors import InvalidOperator
from worker.ledger import history, manage, operators, trail


def entries(db: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return db.execute("SELECT actor, action, target, details FROM audit_log ORDER BY id").fetchall()


def _add_twice() -> None:
    with trail.recording("ann", "operator.add", "bob") as conn:
        operators.add(conn, "bob", "viewer")
        operators.add(conn, "bob", "viewer")


def _give_up(conn: psycopg.Connection[Any]) -> None:
    with outbox.transaction(conn) as changes:
        changes.add(tags=["given-up"])
        _ = 1 / 0


def test_entry_and_act_are_one_transaction(env: dict[str, str], db: psycopg.Connection[Any]) -> None:
    with pytest.raises(InvalidOperator):
        _add_twice()
    assert entries(db) == []
    assert operators.find(db, "bob") is None
    with trail.recording("ann", "note", "a\0" * 900, why={"b\0": ["c\0", 1]}):
        pass
    assert entries(db) == [("ann", "note", ("a\\0" * 900)[:500], {"why": {"b\\0": ["c\\0", 1]}})]


def test_act_invalidates_as_soon_as_it_has_committed(env: dict[str, str], db: psycopg.Connection[Any]) -> None:
    assert manage.queue_settings() == []
    with trail.recording("ann", "queue.pause", "default") as conn:
        manage.set_paused(conn, "default", True)
    assert [row["paused"] for row in manage.queue_settings()] == [True]
    assert outbox.owed(db)[0] == 0


def test_block_in_a_block_that_fails_invalidates_nothing(env: dict[str, str], db: psycopg.Connection[Any]) -> None:
    with outbox.transaction(db) as outer:
        with pytest.raises(ZeroDivisionError):
            _give_up(db)
        with outbox.transaction(db) as inner:
            inner.add(tags=["kept"])
    assert [tag for tag in outer.tags if "given-up" in tag] == []
    assert [tag for tag in outer.tags if "kept" in tag] != []


def test_old_entries_go_with_history(env: dict[str, str], db: psycopg.Connection[Any]) -> None:
    for days in (1, 60):
        db.execute("INSERT INTO audit_log (actor, action, target, at) VALUES ('ann', 'x', %s, now() - %s * interval '1 day')",
                   (str(days), days))  # fmt: skip
    history.keep_up(db)
    assert [target for _, _, target, _ in entries(db)] == ["1"]


def test_audit_log_is_narrowed_and_turned_page_by_page(site: Site, db: psycopg.Connection[Any]) -> None:
    for number in range(120):
        trail.write(db, "ann" if number % 2 else "bob", "job.retry", f"job-{number}")
    trail.write(db, "ann", "queue.pause", "default")
    visitor = site.visitor("viewer")

    def targets(address: str) -> list[str]:
        cells = visitor.get(address).text.split('data-label="To what" class="wrap">')[1:]
        return [cell.partition("<")[0] for cell in cells]

    def older(address: str) -> str:
        tags = read(visitor.get(address).text).tags
        return next((f"/console/audit{tag[1]['href']}" for tag in tags if tag[1].get("rel") == "next"), "")

    assert targets("/console/audit?action=queue") == ["default"]
    assert targets("/console/audit?actor=ann&target=job-7") == ["job-7"]
    address, seen = "/console/audit?actor=bob", list[str]()
    while address:
        seen += targets(address)
        address = older(address)
    assert seen == [f"job-{number}" for number in reversed(range(120)) if number % 2 == 0]
    assert visitor.get("/console/audit?before=x").status_code == 422
