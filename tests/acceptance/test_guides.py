"""The guides of the doors: every command on their pages runs as it stands there, and does what the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.acceptance.conftest import House
from tests.harness import ROOT, Gateway, Program, eventually, free_port, programs_path
from worker.db import statement
from worker.ledger import callers

GUIDES = ROOT / "docs" / "guides"
SECRET = "whsec_" + b64encode(b"a secret of twenty-four bytes or more").decode()

#: What stands for `redis-cli` where neither the machine nor a wheel has one.
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


class Served(NamedTuple):
    """Where the commands of the guides lead to."""

    house: House
    url: str
    key: str


@pytest.fixture(scope="module")
def served(house: House) -> Served:
    """A house with a worker that signs callbacks, and a gateway with a key."""
    house.worker("threads", 2, env={"HOLDFAST_WEBHOOK_SECRETS": SECRET, "HOLDFAST_HTTP_ALLOW_PRIVATE": "1"})
    gateway: Gateway = house.start(Gateway())
    with statement() as conn:
        key = callers.add(conn, "guide", scopes=("enqueue", "read"))
    return Served(house, gateway.url, key)


@pytest.fixture
def shell(served: Served, tmp_path: Path) -> Callable[[str], str]:
    """Run commands as a person would who copies them, in a folder of their own, stopping at the first that fails."""
    path = programs_path()
    programs = tmp_path / ".programs"
    programs.mkdir()
    if shutil.which("redis-cli", path=path) is None:
        (programs / "redis-cli").write_text(_CLIENT.format(python=sys.executable))
        (programs / "redis-cli").chmod(0o755)
    env = {**os.environ, "PATH": f"{path}{os.pathsep}{programs}", "HOLDFAST_API_KEY": served.key,
           "PYTHONPATH": str(ROOT), "REDIS_URL": os.environ["REDIS_URL"].replace("//:", "//default:")}  # fmt: skip

    def run(script: str) -> str:
        # The port that the pages name is the default one; here several run beside each other.
        script = script.replace("http://127.0.0.1:8000", served.url)
        done = subprocess.run(["/bin/bash", "-eu", "-c", script], cwd=tmp_path, env=env, capture_output=True,
                              text=True, timeout=100, check=False)  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        assert "ERROR" not in done.stderr
        return done.stdout

    return run


def blocks(page: str) -> list[str]:
    """Return the commands of a page, a block each."""
    return re.findall(r"^```bash\n(.*?)^```", (GUIDES / page).read_text(), re.MULTILINE | re.DOTALL)


#: The pages, and by block what it prints.
PAGES = {
    "http.md": [
        r'"id":"', r'"name":"http.call"', r'"accepted":2,"refused":0',
        r'event: state(.|\n)*"done":"cancelled"(.|\n)*"done":"queued again"(.|\n)*"jobs":\[',
        r'"queues":\[(.|\n)*"status":"ready"',
    ],
    "sql.md": [
        r"^[0-9a-f-]{36}\n$", r" ([0-9a-f-]{36})\n(.|\n)*\1\n", r"(?s) [0-9a-f-]{36}\n [0-9a-f-]{36}\n\(2 rows\)",
        r"maintenance.upkeep", r"", r"CREATE ROLE",
    ],
    "streams.md": [
        r"^\d+-\d+\n$", r"unknown_task", r" is ", r"queued", r'"key": "order-17"', r"holdfast:intake", r"known already: 1",
    ],
    "import.md": [r"", r"", r"", r""],
    "python-client.md": [
        r"^succeeded {'order': 4712}\ninvalid_arguments kwargs.ur[il]\n$",
        r"^state accepted\n(.|\n)*state succeeded\n\d+ jobs\n$",
    ],
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_guide_do_what_it_says(shell: Callable[[str], str], served: Served, page: str) -> None:
    found = blocks(page)
    assert len(found) == len(PAGES[page]), "each block has a pattern here"
    for script, wanted in zip(found, PAGES[page], strict=True):
        out = shell(script)
        assert re.search(wanted, out), f"{script}\n{out}"
    served.house.sql("DROP ROLE IF EXISTS shop")


def test_receiver_of_the_guide_verifies_what_it_is_told(shell: Callable[[str], str], tmp_path: Path) -> None:
    receiver, secret, call, listing = blocks("webhooks.md")
    shell(receiver)
    assert shell(secret).startswith("whsec_")
    port = free_port()
    with Program(str(tmp_path / "receiver.py"), SECRET, str(port), name="receiver") as running:
        job_id = shell(call.replace(":9000/", f":{port}/")).strip()
        running.wait_for_log(rf"job.succeeded {job_id}", 20)
    shell(listing)


def test_entry_of_the_guide_of_streams_is_one_job_however_often_it_is_read(served: Served) -> None:
    both = "SELECT idempotency_key FROM jobs UNION ALL SELECT idempotency_key FROM job_history"
    assert eventually(lambda: served.house.sql(both).count(("order-17",)) == 1)


def test_every_page_that_the_guide_of_doors_leads_to_is_run() -> None:
    assert set(re.findall(r"\]\(([a-z-]+\.md)\)", (GUIDES / "doors.md").read_text())) == set(PAGES)
