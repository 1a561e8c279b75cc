"""The schema: one head, models equal migrations, up and down and up again, and safe from two places at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from models import Base, Job, JobHistory
from tests.harness import ROOT, create_database, drop_database
from worker.db import alembic_config, newest_revision, sqlalchemy_url, upgrade
from worker.embedded import Stack
from worker.states import HISTORY_COLUMNS, JobState


@pytest.fixture
def empty(stack: Stack) -> Iterator[str]:
    """The URL of a database without a table."""
    yield create_database(stack.postgres.url, "schema")
    drop_database(stack.postgres.url, "schema")


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as conn:
        return {row[0] for row in conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


def ours(obj: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    return not (kind == "table" and name is not None and name.startswith("job_history_"))


def differences(url: str) -> list[Any]:
    engine = create_engine(sqlalchemy_url(url))
    with engine.connect() as connection:
        options = {"compare_type": True, "include_object": ours}
        found = compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)
    engine.dispose()
    return list(found)


def test_migrations_have_a_single_head_and_its_file_is_the_last_by_name() -> None:
    assert ScriptDirectory.from_config(alembic_config("postgresql://nowhere/any")).get_heads() == [newest_revision()]


def test_models_equal_migrations(stack: Stack, template: str) -> None:
    assert differences(stack.postgres.url.rpartition("/")[0] + f"/{template}") == []


def test_tables_stay_in_one_schema_also_for_a_user_called_like_that_of_the_sql_door(empty: str) -> None:
    for revision in ("0007", "head"):
        command.upgrade(alembic_config(empty), revision)
    with psycopg.connect(empty) as conn:
        found = conn.execute("SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname !~ '^(pg_|information_)'")
        assert (conn.info.user, found.fetchall()) == ("holdfast", [("public",)])


def test_difference_would_be_seen(empty: str) -> None:
    upgrade(empty)
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(
            "ALTER TABLE jobs DROP COLUMN progress; DROP INDEX jobs_due_ix; ALTER TABLE effects ALTER name TYPE varchar(9)"
        )
    assert len(differences(empty)) >= 3


def test_constraints_of_the_models_are_in_the_database(stack: Stack, template: str) -> None:
    """What alembic does not compare."""
    with psycopg.connect(stack.postgres.url.rpartition("/")[0] + f"/{template}") as conn:
        there = {row[0] for row in conn.execute("SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace")}
    wanted = {str(c.name) for table in Base.metadata.tables.values() for c in table.constraints}
    assert wanted - there == set()


def test_history_keeps_every_column_a_job_has_but_those_of_its_life() -> None:
    life = {"claim_token", "delivery_tag", "dispatch_epoch", "dispatched_at", "unique_key", "unique_until", "cancel_requested"}
    assert {c.name for c in Job.__table__.columns} - {c.name for c in JobHistory.__table__.columns} == life
    assert set(HISTORY_COLUMNS) == {c.name for c in Job.__table__.columns} - life - {"state", "error"}
    assert len(JobState) == 8


def test_schema_goes_up_and_down_and_up_again(empty: str) -> None:
    upgrade(empty)
    before = tables(empty)
    assert {
        "jobs",
        "job_history",
        "job_history_default",
        "attempts",
        "effects",
        "job_keys",
        "schedules",
        "worker_nodes",
    } <= before
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(
            "CREATE TABLE job_history_20300101 PARTITION OF job_history FOR VALUES FROM ('2030-01-01') TO ('2030-01-02')"
        )
    command.downgrade(alembic_config(empty), "base")
    assert tables(empty) == {"alembic_version"}
    upgrade(empty)
    assert tables(empty) == before
    upgrade(empty)


def test_two_processes_upgrade_at_once(empty: str) -> None:
    code = "from worker.db import upgrade; import sys; upgrade(sys.argv[1])"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, empty], cwd=ROOT, env=os.environ, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = [(process.communicate()[1], process.returncode) for process in processes]
    assert [code for _, code in ends] == [0, 0], ends
    assert differences(empty) == []
