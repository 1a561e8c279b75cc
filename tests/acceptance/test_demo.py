"""Test the demo as a newcomer runs it: it passes, it can fail, and nothing is left of it."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from tests.harness import Program, eventually
from worker.live.asgi import INSECURE_COOKIE
from worker.live.sessions import csrf_token

#: Seconds for one small run on a machine that does other things as well.
RUN_S = 240.0

pytestmark = pytest.mark.timeout(2 * RUN_S)

Demo = Callable[..., Program]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """Start demos whose folders are made in `tmp_path`."""
    started: list[Program] = []

    def start(*args: str) -> Program:
        program = Program("-m", "worker.cli", "demo", *args, name="demo", env={"TMPDIR": str(tmp_path)})
        started.append(program)
        return program.start()

    yield start
    for program in started:
        program.kill_tree()


def _figures(program: Program) -> dict[str, Any]:
    log = program.log()
    found, _ = json.JSONDecoder().raw_decode(log, log.index("\n{\n") + 1)
    return found


def _services(folder: Path) -> dict[str, Any]:
    return json.loads(next(folder.glob("holdfast-demo-*/services.json")).read_text())


def _log_in_by_link(program: Program) -> None:
    """Log in to the console with the link that the demo prints."""
    program.wait_for_log("everything goes on until Ctrl-C", RUN_S)
    found = re.search(r"(http://\S+)/login/once\?token=(\S+)", program.log())
    assert found, program.tail()
    console, token = found.groups()
    with httpx.Client(trust_env=False) as browser:
        browser.get(f"{console}/login")
        fields = {"csrf_token": csrf_token(str(browser.cookies[INSECURE_COOKIE])), "token": token}
        assert browser.post(f"{console}/login/once", data=fields).status_code == 303
        assert "Overview" in browser.get(f"{console}/").text


def test_the_demo_passes_tells_its_figures_and_goes_on_with_a_console(demo: Demo, tmp_path: Path) -> None:
    program = demo("--jobs", "400", "--json", "--seed", "1", "--keep")

    _log_in_by_link(program)
    program.signal(signal.SIGINT)
    assert program.wait(RUN_S) == 0, program.tail()
    told = _figures(program)
    assert told["passed"]
    assert told["verdict"].startswith("PASS: ")
    assert (told["lost"], told["duplicates"], told["waiting"], told["running"]) == (0, 0, 0, 0)
    assert told["accepted"] == told["done"] == told["effects"] == 400 + told["entrances"]["schedule"]["accepted"]
    assert all(one["done"] > 0 for one in told["entrances"].values()), told["entrances"]
    assert told["rolled_back"] == {"enqueued": told["entrances"]["transaction"]["done"], "ran": 0}
    assert told["http"]["requests"] >= told["entrances"]["http"]["done"]
    assert told["callbacks"]["expected"] > 0
    assert told["callbacks"]["missing"] == 0
    assert (told["redis_losses"], told["workers_killed"], told["seed"]) == (2, 1, 1)
    assert told["attempts_died"] >= 1
    assert list(tmp_path.iterdir()) == []


def test_the_demo_fails_when_an_effect_is_doubled_and_another_is_missing(demo: Demo, tmp_path: Path) -> None:
    program = demo("--jobs", "100", "--json", "--seed", "2")
    program.wait_for_log("Flower are up", RUN_S)
    with psycopg.connect(_services(tmp_path)["database_url"], autocommit=True) as conn:
        done = eventually(lambda: conn.execute("SELECT job_id FROM demo_effects LIMIT 2").fetchall()[1:], what="two effects")
        conn.execute("INSERT INTO demo_effects SELECT * FROM demo_effects WHERE job_id <> %s LIMIT 1", done[0])
        conn.execute("DELETE FROM demo_effects WHERE job_id = %s", done[0])

    assert program.wait(RUN_S) == 1, program.tail()
    told = _figures(program)
    assert not told["passed"]
    assert told["verdict"].startswith("FAIL: ")
    assert (told["lost"], told["lost_ids"], told["duplicates"]) == (1, [done[0][0]], 1)
    (kept,) = tmp_path.iterdir()
    assert f"HOLDFAST_HOME={kept} holdfast jobs ls" in program.log()


def test_ctrl_c_ends_the_demo_and_leaves_nothing_behind(demo: Demo, tmp_path: Path) -> None:
    program = demo("--jobs", "2000")
    program.wait_for_log("Flower are up", RUN_S)
    servers = [psutil.Process(pid) for pid in _services(tmp_path)["pids"].values()]
    everything = [*program.children(), *servers]
    assert len(everything) > 8

    program.signal(signal.SIGINT)
    assert program.wait(60.0) == 130
    assert "PASS" not in program.log()
    assert "FAIL" not in program.log()
    assert list(tmp_path.iterdir()) == []
    eventually(lambda: not [p for p in everything if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], what="all ended")


def test_too_few_jobs_are_refused_in_one_line(demo: Demo) -> None:
    program = demo("--jobs", "5")

    assert program.wait(60.0) == 2
    assert program.log() == "holdfast: --jobs: 5 is too few, the demo needs at least 100\n"
