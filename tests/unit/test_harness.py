"""The harness cleans up after itself, and what it forks is like a program that was started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from tests.harness import ROOT, Program, eventually, run

_RUN = """
from tests.harness import Program
program = Program("-c", "import tempfile, time; print(tempfile.mkdtemp(), flush=True); time.sleep(60)", ready="/").start()
print(program.log().strip(), program.log_path)
"""

_FORK = """
from tests import harness
from tests.nursery import Nursery
harness.nursery = Nursery()
program = harness.Program("-m", "http.server", "0", "--bind", "127.0.0.1", ready="Serving").start()
print(program.pid, flush=True)
program.wait()
"""


def server() -> Program:
    return Program("-m", "http.server", "0", "--bind", "127.0.0.1", ready="Serving")


def test_programs_that_are_killed_leave_no_temporary_files(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _RUN], cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, text=True,
                          stdout=subprocess.PIPE, check=True)  # fmt: skip
    made, log = map(Path, done.stdout.split())
    assert made.is_relative_to(tmp_path)
    assert log.is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fork_reads_prints_and_ends_as_a_program_does(tmp_path: Path) -> None:
    given = tmp_path / "given"
    for text, code in (('{"a": 1}', 0), ("{", 1)):
        given.write_text(text)
        with given.open() as stdin:
            done = run("json.tool", "--compact", stdin=stdin)
        assert (done.returncode, done.stdout, bool(done.stderr)) == (code, '{"a":1}\n' if code == 0 else "", code == 1)
    assert run("json.tool", "--nonsense").returncode == 2


def test_fork_is_a_session_of_its_own_that_can_be_watched_and_ended() -> None:
    first, second = server(), server()
    with first, second:
        assert {os.getsid(program.pid) for program in (first, second)} == {first.pid, second.pid}
        assert first.returncode is None
        assert first.stop() == first.returncode == -15
        assert not psutil.pid_exists(first.pid)
        assert second.running
        second.kill()
        assert second.returncode == -9
        first.start()
        assert first.running


def test_forks_go_with_a_starter_that_is_killed(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", _FORK], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout
        pid = int(starter.stdout.readline())
        assert psutil.pid_exists(pid)
        starter.kill()
    eventually(lambda: not psutil.pid_exists(pid))
