"""Fault points: free when not armed, precise when armed, and each in the code exactly once."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker import faults

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    faults.arm("")


def test_point_that_is_not_armed_does_nothing() -> None:
    for name in faults.POINTS:
        faults.point(name)


def test_armed_point_fires_once_on_the_passage_named() -> None:
    faults.arm("after-claim:raise:3")
    faults.point(faults.AFTER_CLAIM)
    faults.point(faults.AFTER_LOCK)
    faults.point(faults.AFTER_CLAIM)
    with pytest.raises(faults.InjectedFault):
        faults.point(faults.AFTER_CLAIM)
    faults.point(faults.AFTER_CLAIM)


def test_several_points_are_armed_together_and_anew() -> None:
    faults.arm("after-insert:raise, after-commit:raise:2")
    with pytest.raises(faults.InjectedFault):
        faults.point(faults.AFTER_INSERT)
    faults.point(faults.AFTER_COMMIT)
    faults.arm("after-settle:raise")
    faults.point(faults.AFTER_COMMIT)
    with pytest.raises(faults.InjectedFault):
        faults.point(faults.AFTER_SETTLE)


@pytest.mark.parametrize("spec", ["nowhere:kill", "after-insert:explode", "after-insert", "after-insert:kill:often", ":kill"])
def test_wrong_fault_is_quoted(spec: str) -> None:
    with pytest.raises(ValueError, match=f"fault {re.escape(repr(spec))}: points are"):
        faults.arm(spec)


def test_kill_is_a_real_kill() -> None:
    code = "from worker import faults; faults.arm('after-claim:kill'); faults.point(faults.AFTER_CLAIM)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == -9


@pytest.mark.parametrize("name", faults.POINTS)
def test_point_stands_in_the_code(name: str) -> None:
    constant = next(key for key, value in vars(faults).items() if value == name and key.isupper())
    uses = [path for path in (ROOT / "worker").rglob("*.py") if f"faults.point(faults.{constant})" in path.read_text()]
    assert uses, f"{constant} is passed nowhere"
