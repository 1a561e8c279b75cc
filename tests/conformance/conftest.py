"""Fixtures of the conformance suite: one worker, relay, gateway and Flower for all doors, and celery-node as npm installs it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.acceptance.conftest import House
from tests.acceptance.conftest import house as house
from tests.conformance.doors import CALLER, HERE, World, run
from tests.harness import Gateway, Program, eventually, free_port
from worker.db import statement
from worker.ledger import callers


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with celery-node in it, of the version and with the digests of the lock file. Fails where npm cannot have it."""
    folder = tmp_path_factory.mktemp("celery_node")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / "celery_node" / name, folder)
    done = run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=folder)
    assert done.returncode == 0, f"npm could not install celery-node, which this suite needs:\n{done.stderr}"
    return folder


@pytest.fixture(scope="module")
def world(house: House, node_folder: Path) -> World:
    """Everything that the doors lead to."""
    house.worker("threads", 2)
    gateway: Gateway = house.start(Gateway())
    port = free_port()
    house.start(Program("-m", "celery", "-A", "worker.app", "flower", "--address=127.0.0.1", f"--port={port}",
                        "--basic-auth=user:word", name="flower"))  # fmt: skip
    with statement() as conn:
        key = callers.add(conn, CALLER, scopes=("enqueue", "read"))
    world = World(house, gateway.url, f"http://user:word@127.0.0.1:{port}", key, node_folder)
    eventually(lambda: run("curl", "-fsS", f"{world.flower_url}/healthcheck").returncode == 0, 40, what="Flower answering")
    return world
