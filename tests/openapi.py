"""Runs schemathesis on a gateway: requests by the dozen that its OpenAPI document allows, or forbids."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

#: What tasks and queues there are, and what arguments a task takes, is not for the document to know: a call may be refused by 422
#: for that, and a job that has ended or runs by 409. What the document forbids must be refused, and nothing may fail.
_CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 403, 404, 409, 413, 422]
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 409, 413, 415, 422]
"""


def run_schemathesis(url: str, key: str, tasks: list[str], folder: Path, *, seconds: int, seed: int) -> None:
    """Run all checks for so many seconds. Raises `AssertionError` with what it prints when one fails."""
    document = httpx.get(f"{url}/openapi.json", trust_env=False).json()
    _know_what_there_is(document, tasks, _jobs(url, key, tasks[0]))
    schema, config = folder / "openapi.json", folder / "schemathesis.toml"
    schema.write_text(json.dumps(document))
    config.write_text(_CONFIG)
    program = [str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(config), "run", str(schema)]
    options = ["--url", url, "-H", f"Authorization: Bearer {key}", "--checks", "all", "--max-time", str(seconds),
               "--request-timeout", "30", "--seed", str(seed), "--no-color", "--suppress-health-check", "all",
               "--continue-on-failure"]  # fmt: skip
    done = subprocess.run([*program, *options], cwd=folder, capture_output=True, text=True, timeout=seconds + 240, check=False)
    print(done.stdout[-3_000:])
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2_000:]


def _jobs(url: str, key: str, task: str) -> list[str]:
    """Hand in jobs that wait, of which one is cancelled, and return their ids."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=30) as http:
        ids = [http.post("/v1/jobs", json={"task": task, "delay": "1d"}).json()["id"] for _ in range(4)]
        assert http.post(f"/v1/jobs/{ids[0]}:cancel").status_code == 200
    return ids


def _know_what_there_is(document: dict[str, Any], tasks: list[str], ids: list[str]) -> None:
    """Let requests name tasks, queues and jobs that there are, so that many of them are good."""
    fields = document["components"]["schemas"]["NewJob"]["properties"]
    fields["task"]["enum"] = tasks
    fields["queue"]["anyOf"] = [{"enum": ["default"]}, {"type": "null"}]
    # A batch is answered item by item: one that names no task is no bad request.
    document["components"]["schemas"]["BatchJob"]["properties"]["task"]["examples"] = tasks
    known = {"job_id": ids, "cursor": ["2030-01-01T00:00:00+00:00~x"]}
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in known:
                    parameter["schema"] = {"type": "string", "enum": known[parameter["name"]]}
