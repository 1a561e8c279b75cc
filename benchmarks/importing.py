"""How many jobs a second `holdfast import` makes durable, from a file and again with `--resume`.

    python -m benchmarks.importing [--quick] [--json]

A fresh process imports a file of small calls, one commit that syncs to disk per thousand of them.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import psycopg

from benchmarks.sql_door import prepare
from benchmarks.support import Report, Servers, console, options, servers, told_by


def main() -> int:
    """Measure and print."""
    given = options(__doc__).parse_args()
    report = Report(as_json=given.json)
    jobs, rounds = (10_000, 1) if given.quick else (100_000, 3)
    with servers() as here:
        prepare()
        first, again = zip(*(_round(here, jobs, turn) for turn in range(rounds)), strict=True)
    rows = [("new", round(statistics.median(first))), ("all known, --resume", round(statistics.median(again)))]
    report.table("Lines of a file imported", ["", "lines/s"], rows)
    report.figure("import_jobs_per_s", statistics.median(first), 0)
    report.figure("import_known_per_s", statistics.median(again), 0)
    report.target("import, jobs/s", statistics.median(first), least=10_000)
    report.print()
    return 0


def _round(here: Servers, jobs: int, turn: int) -> tuple[float, float]:
    console.print(f"[dim]round {turn + 1}[/]")
    path = here.folder / "jobs.jsonl"
    path.write_text("".join(json.dumps({"task": "tests.sample_tasks.add", "args": [turn, n]}) + "\n" for n in range(jobs)))
    found = jobs / _import(here, path), jobs / _import(here, path, "--resume")
    with psycopg.connect(here.stack.postgres.url, autocommit=True) as conn:
        conn.execute("TRUNCATE jobs")
    here.flush()
    return found


def _import(here: Servers, path: Path, *args: str) -> float:
    env = {**here.env(), "HOLDFAST_INCLUDE": "tests.sample_tasks"}
    code = f"from worker.cli.program import invoke; invoke(['import', {str(path)!r}, *{list(args)!r}])"
    said = told_by("-c", f"import time; s = time.perf_counter(); {code}; print(time.perf_counter() - s)", env=env)
    return float(said)


if __name__ == "__main__":
    sys.exit(main())
