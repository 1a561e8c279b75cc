"""Files of tests are dealt out whole, the long ones first."""

from __future__ import annotations

from tests.harness import ROOT
from tests.turns import LONG, turns

FILES = [str(path.relative_to(ROOT / "tests")) for path in (ROOT / "tests").rglob("test_*.py")]


def test_every_file_has_one_turn_and_those_called_long_are_there() -> None:
    assert sorted(turns(FILES)) == sorted(FILES)
    assert LONG.keys() - set(FILES) == set()


def test_long_files_come_first_among_their_like_and_programs_take_turns_with_services() -> None:
    short = ["console/test_a.py", "console/test_b.py", "integration/test_a.py", "integration/test_b.py", "unit/test_a.py"]
    assert turns(["acceptance/test_demo.py", "chaos/test_workers.py", "integration/test_beat.py", *short]) == [
        "chaos/test_workers.py", "integration/test_beat.py", "integration/test_a.py", "acceptance/test_demo.py",
        "integration/test_b.py", "console/test_a.py", "console/test_b.py", "unit/test_a.py",
    ]  # fmt: skip
