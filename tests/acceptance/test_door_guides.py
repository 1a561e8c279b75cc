"""The guides of the doors: every command on their pages runs as it stands there."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest

from tests.acceptance.conftest import House
from tests.harness import ROOT, Program

GUIDES = ROOT / "docs" / "guides"
SECRET = "whsec_" + b64encode(b"a secret of twenty-four bytes or more").decode()


@pytest.fixture(scope="module")
def served(house: House) -> House:
    """A house with a worker that signs callbacks."""
    house.worker("threads", 2, env={"HOLDFAST_WEBHOOK_SECRETS": SECRET, "HOLDFAST_HTTP_ALLOW_PRIVATE": "1"})
    return house


def blocks(page: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", (GUIDES / page).read_text(), re.MULTILINE | re.DOTALL)


def shell(script: str, folder: Path) -> str:
    """Run a block as a person would who copies it, stopping at the first command that fails."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "HOLDFAST_INCLUDE": ""}
    done = subprocess.run(["bash", "-eu", "-c", script], cwd=folder, env=env, capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    assert "ERROR" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("page", ["sql.md", "import.md"])
def test_commands_of_a_guide_run_as_they_stand_there(served: House, tmp_path: Path, page: str) -> None:
    found = blocks(page)
    assert len(found) >= 3
    for script in found:
        shell(script, tmp_path)
    served.sql("DROP ROLE IF EXISTS shop")


def test_receiver_of_the_guide_verifies_what_it_is_told(served: House, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    receiver, secret, call, listing = blocks("webhooks.md")
    shell(receiver, tmp_path)
    assert shell(secret, tmp_path).startswith("whsec_")
    with Program(str(tmp_path / "receiver.py"), SECRET, str(port), name="receiver") as running:
        job_id = shell(call.replace(":9000/", f":{port}/"), tmp_path).strip()
        running.wait_for_log(rf"job.succeeded {job_id}", 20)
    shell(listing, tmp_path)
