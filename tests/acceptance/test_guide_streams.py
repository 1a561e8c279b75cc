"""The guide of the streams does what it says: its commands are run as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.harness import ROOT, Relay, eventually

GUIDE = ROOT / "docs" / "guides" / "streams.md"

#: What stands for `redis-cli` where the machine has none.
_CLIENT = """#!{python}
import sys
from redis import Redis
url, *command = sys.argv[2:]
def show(value):
    if isinstance(value, dict):
        value = [part for pair in value.items() for part in pair]
    if isinstance(value, (list, tuple)):
        for part in value:
            show(part)
    else:
        print(value.decode(errors="backslashreplace") if isinstance(value, bytes) else value)
show(Redis.from_url(url).execute_command(*command))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for the PATH with `redis-cli` and `holdfast`."""
    client = tmp_path / "redis-cli"
    if (found := shutil.which("redis-cli")) is not None:
        client.symlink_to(found)
    else:
        client.write_text(_CLIENT.format(python=sys.executable))
    command = tmp_path / "holdfast"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m worker.cli "$@"\n')
    for program in (client, command):
        if not program.is_symlink():
            program.chmod(0o755)
    return tmp_path


def test_commands_of_the_guide_do_what_it_says(env: dict[str, str], launch: Callable[[Relay], Relay], folder: Path) -> None:
    included = {"HOLDFAST_INCLUDE": "tests.sample_tasks"}
    launch(Relay(env=included))
    blocks = re.findall(r"^```bash\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    outputs = []
    for block in blocks:
        done = subprocess.run(
            ["/bin/bash", "-euc", block], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, **included, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        outputs.append(done.stdout)
    put, wrong, requeued, followed, tailed, looked, replayed = outputs
    assert re.fullmatch(r"\d+-\d+", put.strip())
    assert "unknown_task" in wrong
    assert "is" in requeued
    assert "queued" in followed
    assert '"key": "order-17"' in tailed
    assert "holdfast:intake" in looked
    assert "known already: 1" in replayed
    with psycopg.connect(env["DATABASE_URL"]) as conn:
        sql = "SELECT count(*) FROM jobs WHERE idempotency_key = 'order-17'"
        assert eventually(lambda: conn.execute(sql).fetchone()) == (1,)
