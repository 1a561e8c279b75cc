"""The harness cleans up after itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.harness import ROOT

_RUN = """
from tests.harness import Program
program = Program("-c", "import tempfile, time; print(tempfile.mkdtemp(), flush=True); time.sleep(60)", ready="/").start()
print(program.log().strip(), program.log_path)
"""


def test_programs_that_are_killed_leave_no_temporary_files(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _RUN], cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, text=True,
                          stdout=subprocess.PIPE, check=True)  # fmt: skip
    made, log = map(Path, done.stdout.split())
    assert made.is_relative_to(tmp_path)
    assert log.is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []
