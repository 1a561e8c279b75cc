"""The supervisor, on small programs of ours: it restarts what dies, stops cleanly, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tests.harness import ROOT, Program, eventually
from worker.cli.supervisor import pause_s

#: A supervisor of the programs given as text; one line to say that it is up comes from them.
MAIN = """
import signal, sys
from worker.cli.supervisor import Spec, Supervisor
programs = [Spec(f"p{n}", [sys.executable, "-c", text], hard=signal.SIGQUIT) for n, text in enumerate(sys.argv[2:], 1)]
sys.exit(Supervisor(programs, guarded=sys.argv[1] == "guarded").run())
"""
SLEEP = "import os, time; print('pid', os.getpid(), flush=True); time.sleep(60)"


def supervised(*texts: str, guarded: bool = False) -> Program:
    args = ["guarded" if guarded else "plain", *(textwrap.dedent(text) for text in texts)]
    return Program("-c", MAIN, *args, name="supervisor", env={"PYTHONPATH": str(ROOT), "HOLDFAST_SHUTDOWN_GRACE_S": "0"})


def pid_of(program: Program, name: str, start: int = 0) -> int:
    return int(program.wait_for_log(rf"{name} +\| pid (\d+)", start=start).group(1))


def test_pauses_grow_and_are_bounded() -> None:
    pauses = [pause_s(n) for n in range(1, 40)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.5, 15.0)


def test_lines_carry_the_name_of_their_program_whole_or_not() -> None:
    text = "import sys; sys.stdout.write('no end'); sys.stdout.flush(); sys.stderr.write('; \\xff\\nlast'); sys.exit(2)"
    with supervised(text) as program:
        assert program.wait() == 2
    assert re.search(r"^p1 +\| no end; .\np1 +\| last$", program.log(), re.MULTILINE)


def test_what_dies_is_started_again() -> None:
    with supervised(SLEEP, SLEEP) as program:
        first, other = pid_of(program, "p1"), pid_of(program, "p2")
        at = len(program.log().encode())
        os.kill(first, signal.SIGKILL)
        assert pid_of(program, "p1", at) != first
        assert "p1 was killed by SIGKILL; it starts again in 0.5 s" in re.sub(" +", " ", program.log(at))
        assert psutil.pid_exists(other)
        assert program.stop() == 0
        assert "p2 has stopped" in program.log()


def test_bad_input_ends_everything_instead_of_being_tried_again() -> None:
    with supervised("import sys; print('bad option'); sys.exit(2)", SLEEP) as program:
        assert program.wait() == 2
        assert "no restart mends" in program.log()


def test_a_stop_asks_each_program_once_and_a_second_one_harder() -> None:
    text = """
        import os, signal, time
        def got(number, frame):
            os.write(1, f"got {signal.Signals(number).name}\\n".encode())  # one handler may interrupt another
            if number == signal.SIGQUIT: os._exit(0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT): signal.signal(number, got)
        print("pid", os.getpid(), flush=True)
        while True: time.sleep(0.1)
    """
    with supervised(text) as program:
        pid_of(program, "p1")
        os.killpg(program.pid, signal.SIGINT)  # Ctrl-C goes to all of the terminal's group
        program.wait_for_log("got SIGTERM")
        program.signal(signal.SIGINT)
        program.wait_for_log("got SIGQUIT")
        assert program.wait() == 0
        assert "got SIGINT" not in program.log()


def test_who_does_not_stop_is_killed_after_the_grace_with_its_children() -> None:
    text = """
        import os, signal, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"])
        for number in (signal.SIGTERM, signal.SIGQUIT): signal.signal(number, signal.SIG_IGN)
        print("child", child.pid, flush=True)
        print("pid", os.getpid(), flush=True)
        time.sleep(60)
    """
    with supervised(text) as program:
        pid_of(program, "p1")
        child = psutil.Process(int(program.wait_for_log(r"child (\d+)").group(1)))
        for _ in range(3):  # the third kills without waiting for the grace
            program.signal(signal.SIGTERM)
            time.sleep(0.5)  # two signals at once are one
        assert program.wait() == 0
        eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("guarded", [True, False] if sys.platform == "linux" else [True])
def test_programs_do_not_outlive_a_supervisor_that_is_killed(guarded: bool) -> None:
    with supervised(SLEEP, SLEEP, guarded=guarded) as program:
        children = [psutil.Process(pid_of(program, name)) for name in ("p1", "p2")]
        program.kill()
        for child in children:
            eventually(lambda child=child: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, what="its end")


def test_the_guard_alone_kills_the_groups_it_was_told(tmp_path: Path) -> None:
    import subprocess

    kept, lost = (subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) for _ in "ab")
    try:
        guard = ROOT / "worker" / "cli" / "guard.py"
        told = f"+{kept.pid}\n+{lost.pid}\n-{kept.pid}\n"
        subprocess.run([sys.executable, "-I", guard], input=told, text=True, check=True, cwd=tmp_path, timeout=30)
        assert lost.wait(10) == -signal.SIGKILL
        assert kept.poll() is None
    finally:
        kept.kill()
        kept.wait()
