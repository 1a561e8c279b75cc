"""Measure what the HTTP gateway accepts: single POSTs beside the same server's `/healthz`, batches, and Flower's REST.

Each POST is answered after its commit, with Postgres syncing to disk. The load comes from `wrk` where it is on the PATH, else
from asyncio processes of our own, which on two cores take a good part of what they measure; the report says which it was.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx

from benchmarks.support import Program, Report, Servers, console, options, percentile, ratio, servers
from tests.harness import Gateway, Worker, eventually, free_port
from worker.db import statement
from worker.ledger import callers

#: Connections that are kept open, and the processes of ours that share them.
CONNECTIONS, PROCESSES = 64, 2
SECONDS, ROUNDS = 8.0, 5
#: Jobs of one batch, and batches; and jobs that come alone.
BATCH, BATCHES, LONE = 10_000, 3, 300
CALL = {"task": "tests.sample_tasks.noop"}

_STARTED_MS = "SELECT extract(epoch FROM started_at - created_at)::float8 * 1000 FROM job_history WHERE id = %s"


class Load(NamedTuple):
    """What one round of load came to."""

    a_second: float
    p99_ms: float


class Target(NamedTuple):
    """What a round asks for."""

    port: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


# ---- the load


def load(target: Target, seconds: float) -> Load:
    """Keep all connections busy for so long."""
    return _wrk(target, seconds) if shutil.which("wrk") else _own(target, seconds)


def _own(target: Target, seconds: float) -> Load:
    told = json.dumps([*target[:4], target.body.decode(), CONNECTIONS // PROCESSES, seconds])
    command = [sys.executable, "-m", "benchmarks.gateway", "--load", told]
    programs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    answers = [json.loads(program.communicate()[0]) for program in programs]
    took = [ms for answer in answers for ms in answer["ms"]]
    return Load(sum(len(answer["ms"]) / answer["seconds"] for answer in answers), percentile(took, 99))


def _wrk(target: Target, seconds: float) -> Load:
    script = f"wrk.method = {target.method!r}\nwrk.body = {json.dumps(target.body.decode())}\n"
    script += "".join(f"wrk.headers[{name!r}] = {value!r}\n" for name, value in target.headers.items())
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = ["wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{seconds:g}s", "--latency", "-s", file.name]
        command.append(f"http://127.0.0.1:{target.port}{target.path}")
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    if "Non-2xx" in said.stdout:
        raise SystemExit(said.stdout)
    number, unit = re.search(r"99%\s+([0-9.]+)(us|ms|s)", said.stdout).groups()  # type: ignore[union-attr]
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", said.stdout)
    assert rate is not None
    return Load(float(rate[1]), float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit])


async def _connection(port: int, request: bytes, until: float, took: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (began := time.perf_counter()) < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if head[9:10] != b"2":
            raise SystemExit(f"the answer was no success: {head.decode()}")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        took.append((time.perf_counter() - began) * 1000)
    writer.close()


async def _loader(
    port: int, method: str, path: str, headers: dict[str, str], body: str, connections: int, seconds: float
) -> None:
    """Be one of the processes that make the load, and tell how long each request took."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", *(f"{name}: {value}" for name, value in headers.items())]
    request = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", body]).encode()
    took: list[float] = []
    began = time.perf_counter()
    await asyncio.gather(*(_connection(port, request, began + seconds, took) for _ in range(connections)))
    print(json.dumps({"ms": took, "seconds": time.perf_counter() - began}))


# ---- what is measured


def batches(gateway: Gateway, key: str, count: int) -> float:
    """Return the jobs a second of batches that are sent one after the other."""
    headers = {"Authorization": f"Bearer {key}"}
    body = json.dumps({"jobs": [CALL] * BATCH, "all": True}).encode()
    with httpx.Client(base_url=gateway.url, headers={**headers, "Content-Type": "application/json"}, timeout=120) as http:
        began = time.perf_counter()
        for _ in range(count):
            answer = http.post("/v1/jobs:batch", content=body)
            assert answer.json()["accepted"] == BATCH, answer.text
        return count * BATCH / (time.perf_counter() - began)


def latencies(gateway: Gateway, key: str, jobs: int) -> list[float]:
    """Return the milliseconds from the commit of a job to its start, of a system that has one job at a time."""
    found = []
    with Worker(pool="threads", concurrency=2, include="tests.sample_tasks"), statement() as conn:
        with httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {key}"}) as http:
            for _ in range(jobs + 1):
                job_id = http.post("/v1/jobs", json=CALL).json()["id"]
                found.append(eventually(lambda i=job_id: conn.execute(_STARTED_MS, (i,)).fetchone(), 30)[0])
    return found[1:]  # the first opens the worker's connections


@contextmanager
def flower() -> Iterator[Target]:
    """Run Flower, and give what its REST is asked by; it writes to the same ledger."""
    port = free_port()
    program = Program("-m", "worker.cli", "flower", "--port", str(port), name="flower",
                      env={"HOLDFAST_FLOWER_AUTH": "bench:bench"})  # fmt: skip
    headers = {"Authorization": "Basic " + base64.b64encode(b"bench:bench").decode()}
    with program:
        eventually(lambda: httpx.get(f"http://127.0.0.1:{port}/healthcheck").status_code == 200, 30)
        yield Target(port, "POST", f"/api/task/send-task/{CALL['task']}", headers, b'{"args": []}')


def measure(here: Servers, report: Report, seconds: float, count: int, batch_count: int, lone: int) -> None:
    """Measure all of it, taking turns."""
    with statement() as conn:
        key = callers.add(conn, "bench", scopes=["enqueue"])
    gateway = Gateway(include="tests.sample_tasks", env={"HOLDFAST_LOG_LEVEL": "WARNING"})
    with gateway, flower() as rest:
        keyed = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        targets = {
            "healthz": Target(gateway.port, "GET", "/healthz", {}),
            "POST /v1/jobs": Target(gateway.port, "POST", "/v1/jobs", keyed, json.dumps(CALL).encode()),
            "Flower": rest,
        }
        found: dict[str, list[Load]] = {name: [] for name in targets}
        load(targets["POST /v1/jobs"], 1)  # first connections, first plans
        for turn in range(count):
            for name, target in targets.items():
                console.print(f"[dim]round {turn + 1} of {count}: {name}[/]")
                found[name].append(load(target, seconds))
        batched = batches(gateway, key, batch_count)
        with statement() as conn:
            conn.execute("TRUNCATE jobs")
        here.flush()
        waits = latencies(gateway, key, lone)
    _tell(report, found, batched)
    report.figure("commit to start p50 ms", percentile(waits, 50), 1)
    report.target("commit to start by HTTP, p99 in ms", percentile(waits, 99), most=50)


def _tell(report: Report, found: dict[str, list[Load]], batched: float) -> None:
    rows = []
    for name, loads in found.items():
        speed, p99 = (statistics.median(one[at] for one in loads) for at in (0, 1))
        report.figure(f"{name}, a second", speed, 0)
        report.figure(f"{name}, p99 ms", p99, 1)
        rows.append((name, round(speed), round(p99, 1)))
    rows.append((f"batches of {BATCH:,}, jobs", round(batched), None))
    report.figure("batch, jobs a second", batched, 0)
    tool = "wrk" if shutil.which("wrk") else f"{PROCESSES} asyncio processes"
    report.table(f"HTTP, {CONNECTIONS} connections, load by {tool}", ("what", "a second", "p99 ms"), rows)
    speeds = {name: [one.a_second for one in loads] for name, loads in found.items()}
    report.target("single POSTs, of the same server's healthz", ratio(speeds["POST /v1/jobs"], speeds["healthz"]), least=0.5)
    report.figure("single POSTs, of Flower's", ratio(speeds["POST /v1/jobs"], speeds["Flower"]))
    report.target("batched jobs a second", batched, least=10_000)


def main() -> None:
    """Measure and print."""
    if "--load" in sys.argv:
        values: list[Any] = json.loads(sys.argv[-1])
        asyncio.run(_loader(*values))
        return
    args = options(__doc__).parse_args()
    report = Report(as_json=args.json)
    with servers() as here:
        from worker.db import upgrade

        os.environ.update(here.env())
        upgrade()
        measure(here, report, *((2.0, 2, 1, 50) if args.quick else (SECONDS, ROUNDS, BATCHES, LONE)))
    report.print()


if __name__ == "__main__":
    main()
