"""Test `holdfast up` as a newcomer runs it, in a folder where nothing was before."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from tests import harness
from tests.harness import Program, eventually
from tests.sample_tasks import add

#: Seconds for everything to start on a machine that does other things as well.
START_S = 120.0

pytestmark = pytest.mark.timeout(2 * START_S)


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
    """Settings of a house with servers of its own."""
    return {"DATABASE_URL": "", "REDIS_URL": "", "CACHE_URL": "", "HOLDFAST_HOME": str(tmp_path / "home"),
            "HOLDFAST_INCLUDE": "tests.sample_tasks"}  # fmt: skip


@pytest.fixture
def up(own: dict[str, str]) -> Iterator[Program]:
    """All of Holdfast."""
    program = Program("-m", "worker.cli", "up", name="up", env=own)
    yield program.start()
    program.kill_tree()


def status(link: str) -> int | None:
    try:
        return httpx.get(link, trust_env=False).status_code
    except httpx.TransportError:
        return None


def test_first_start_runs_a_job_lets_in_by_its_link_and_ends(up: Program, own: dict[str, str]) -> None:
    link = up.wait_for_log(r"http://\S+/login/once\?token=\S+", START_S)[0]
    assert eventually(lambda: status(link), START_S) == 200, "the link asks whether to log in"
    done = harness.run("worker.cli", "run", add.name, "1", "2", "--wait", env=own, timeout=START_S)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr + up.tail()
    with psycopg.connect(json.loads((Path(own["HOLDFAST_HOME"]) / "services.json").read_text())["database_url"]) as conn:
        where = conn.execute("SELECT DISTINCT relnamespace FROM pg_class WHERE relname ~ '^(jobs|job_history)'").fetchall()
    assert len(where) == 1, "tables lie in more than one schema"
    up.signal(signal.SIGINT)
    assert up.wait(60) == 0
    assert "Traceback" not in up.log()
    assert "it starts again" not in up.log()
