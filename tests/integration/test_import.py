"""`holdfast import`: a file of jobs accepted in bulk, nothing twice, and nothing bad in the way of what is behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests import sample_tasks as tasks
from tests.harness import ROOT
from tests.integration.conftest import Bench
from worker.cli.program import invoke
from worker.engine import importing
from worker.engine.relay import Relay
from worker.faults import InjectedFault
from worker.ledger import manage

Conn = psycopg.Connection[Any]
ADD = "tests.sample_tasks.add"
assert tasks.add.name == ADD


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "BATCH", 10)


@pytest.fixture
def load(env: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Import a file and return the exit code and the summary."""

    def run(*args: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = invoke(["import", *args, "--json"])
        out = capsys.readouterr().out
        return code, json.loads(out) if out else {}

    return run


def write(path: Path, lines: list[Any]) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def adds(first: int, last: int, **given: Any) -> list[dict[str, Any]]:
    return [{"task": ADD, "args": [number, 1], **given} for number in range(first, last)]


def accepted(db: Conn) -> list[Any]:
    """Return the first argument of each job there is or was, in order."""
    rows = db.execute("SELECT message FROM jobs UNION ALL SELECT message FROM job_history").fetchall()
    return sorted(json.loads(row[0]["body"])[0][0] for row in rows)


Load = Callable[..., tuple[int, dict[str, Any]]]


def test_each_line_becomes_a_job_that_runs(db: Conn, load: Load, tmp_path: Path, relay: Relay, bench: Bench) -> None:
    code, told = load(write(tmp_path / "jobs.jsonl", adds(0, 25, priority=2, caller="me", metadata={"a": 1})))
    assert (code, told["lines"], told["accepted"], told["rejected"]) == (0, 25, 25, 0)
    assert accepted(db) == list(range(25))
    assert db.execute("SELECT DISTINCT priority, caller, metadata FROM jobs").fetchall() == [(2, "me", {"a": 1})]
    relay.round()
    done = bench.work()
    assert len(done) == 25
    assert {manage.show(db, job_id)["state"] for job_id in done} == {"succeeded"}
    assert not (tmp_path / "jobs.jsonl.rejected.jsonl").exists()


def test_fields_that_need_looking_at_are_honoured(db: Conn, load: Load, tmp_path: Path) -> None:
    lines = [{"task": ADD, "args": [1, 2], "delay": "1h"}, {"task": ADD, "args": [1, 2], "idempotency_key": "k"},
             {"task": ADD, "args": [1, 2], "idempotency_key": "k"}, {"task": ADD, "args": [1, 2], "unique": "u", "expires": 60},
             {"task": ADD, "args": [1, 3], "unique": "u"}, {"task": "tests.sample_tasks.metered", "kwargs": {"tenant": "t"}},
             {"task": ADD, "args": [1, 2], "callback_url": "http://example.com/"}]  # fmt: skip
    code, told = load(write(tmp_path / "jobs.jsonl", lines))
    assert (code, told["accepted"], told["known"]) == (0, 5, 2)
    counts = db.execute("""SELECT count(*) FILTER (WHERE state = 'scheduled'), count(idempotency_key), count(unique_key),
                                  count(gate), count(callback_url), count(expires_at) FROM jobs""").fetchone()
    assert counts == (1, 1, 1, 1, 1, 1)


BAD: list[tuple[Any, str, str]] = [
    ("{", "invalid_job", ""),
    ("[1, 2]", "invalid_job", ""),
    ('{"task": "\ud83d', "invalid_job", ""),
    ({"task": "nowhere.to_be_found"}, "unknown_task", "task"),
    ({"args": [1, 2]}, "invalid_job", "task"),
    ({"task": ADD, "args": [1, 2], "queue": "nowhere"}, "unknown_queue", "queue"),
    ({"task": ADD, "args": [1]}, "invalid_arguments", "kwargs.y"),
    ({"task": ADD, "args": [1, "x"]}, "invalid_arguments", "args.1"),
    ({"task": ADD, "args": [1, 2], "colour": "red"}, "invalid_job", "colour"),
    ({"task": ADD, "args": [1, 2], "priority": 12}, "invalid_job", "priority"),
    ({"task": ADD, "args": [1, 2], "callback_url": "x"}, "invalid_job", "callback_url"),
    ({"task": "tests.sample_tasks.echo", "args": ["x" * 1_200_000]}, "too_large", "args"),
    ({"task": ADD, "args": [9, 9], "idempotency_key": "taken"}, "idempotency_conflict", "idempotency_key"),
]


def test_bad_lines_are_set_aside_and_hold_nothing_up(db: Conn, load: Load, tmp_path: Path) -> None:
    tasks.add.apply_async((0, 0), idempotency_key="taken")
    lines: list[Any] = []
    for number, (line, *_) in enumerate(BAD):
        text = line if isinstance(line, str) else json.dumps(line)
        lines += [text.encode(errors="replace").decode(), {"task": ADD, "args": [number, 1]}]
    code, told = load(write(tmp_path / "jobs.jsonl", lines))
    assert (code, told["accepted"], told["rejected"]) == (1, len(BAD), len(BAD))
    aside = [json.loads(line) for line in Path(told["rejected_file"]).read_text().splitlines()]
    aside.sort(key=lambda entry: entry["line"])
    assert [(entry["line"], entry["code"], entry["field"]) for entry in aside] == [
        (2 * place + 1, code, field) for place, (_, code, field) in enumerate(BAD)
    ]
    assert all(entry["error"] and entry["given"] for entry in aside)


def test_line_beyond_all_bounds_is_cut_off_not_read(db: Conn, load: Load, tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b'{"task": "' + b"x" * 20_000_000 + b'"}\n' + json.dumps(adds(7, 8)[0]).encode())
    code, told = load(str(path))
    assert (code, told["accepted"], told["rejected"]) == (1, 1, 1)
    aside = json.loads(Path(told["rejected_file"]).read_text())
    assert (aside["code"], len(aside["given"]) < 2_000_000) == ("too_large", True)


def test_second_import_of_a_file_is_refused_unless_it_resumes(db: Conn, load: Load, tmp_path: Path) -> None:
    path = write(tmp_path / "jobs.jsonl", adds(0, 25))
    load(path)
    code, told = load(path)
    assert (code, told) == (2, {})
    code, told = load(path, "--resume")
    assert (code, told["accepted"], told["known"]) == (0, 0, 25)
    assert accepted(db) == list(range(25))


def test_file_that_has_grown_is_resumed_with_what_is_new(
    db: Conn, load: Load, tmp_path: Path, relay: Relay, bench: Bench
) -> None:
    path = write(tmp_path / "jobs.jsonl", adds(0, 15))
    load(path)
    relay.round()
    bench.work()
    write(tmp_path / "jobs.jsonl", adds(0, 40))
    code, told = load(path, "--resume")
    assert (code, told["accepted"], told["known"]) == (0, 25, 15)
    assert accepted(db) == list(range(40))


def test_two_files_with_the_same_line_are_two_jobs(db: Conn, load: Load, tmp_path: Path) -> None:
    load(write(tmp_path / "one.jsonl", [*adds(0, 1), *adds(5, 6), *adds(5, 6)]))
    load(write(tmp_path / "two.jsonl", [*adds(1, 2), *adds(5, 6)]))
    assert accepted(db) == [0, 1, 5, 5, 5]


@pytest.mark.parametrize("point", ["after-insert", "after-commit"])
def test_import_that_dies_anywhere_is_resumed_without_loss_or_double(
    db: Conn, load: Load, tmp_path: Path, fault: Callable[[str], None], point: str
) -> None:
    path = write(tmp_path / "jobs.jsonl", adds(0, 45))
    for nth in (1, 2, 3):
        fault(f"{point}:raise:{nth}")
        with pytest.raises(InjectedFault):
            load(path, "--resume")
    fault("")
    code, _ = load(path, "--resume")
    assert (code, accepted(db)) == (0, list(range(45)))


def test_import_that_is_killed_is_resumed_without_loss_or_double(db: Conn, load: Load, tmp_path: Path) -> None:
    path = write(tmp_path / "jobs.jsonl", adds(0, 6000))
    env = {**os.environ, "HOLDFAST_INCLUDE": "tests.sample_tasks", "HOLDFAST_FAULT": "after-commit:kill:2"}
    code = (
        "from worker import faults; from worker.settings import settings; faults.arm(settings().fault);"
        f"from worker.cli.program import invoke; invoke(['import', {path!r}])"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=False).returncode == -9
    assert len(accepted(db)) == 2000
    code, told = load(path, "--resume")
    assert (code, told["accepted"], told["known"]) == (0, 4000, 2000)
    assert accepted(db) == list(range(6000))


def test_dry_run_accepts_nothing_and_tells_what_is_wrong(db: Conn, load: Load, tmp_path: Path) -> None:
    code, told = load(write(tmp_path / "jobs.jsonl", [*adds(0, 3), "{"]), "--dry-run")
    assert (code, told["accepted"], told["rejected"]) == (1, 3, 1)
    assert accepted(db) == []


def test_stdin_is_read_and_resumed_as_a_file(db: Conn, env: dict[str, str], tmp_path: Path) -> None:
    given = "".join(json.dumps(line) + "\n" for line in adds(0, 5))
    command = [sys.executable, "-m", "worker.cli", "import", "-", "--resume", "--json"]
    for known in (0, 5):
        done = subprocess.run(command, cwd=tmp_path, input=given, text=True, capture_output=True, check=False,
                              env={**os.environ, "HOLDFAST_INCLUDE": "tests.sample_tasks", "PYTHONPATH": str(ROOT)})  # fmt: skip
        assert (done.returncode, json.loads(done.stdout)["known"]) == (0, known), done.stderr
    assert accepted(db) == list(range(5))


def test_empty_lines_and_a_byte_order_mark_are_overlooked(db: Conn, load: Load, tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(adds(0, 1)[0]).encode() + b"\r\n\n  \n" + json.dumps(adds(1, 2)[0]).encode())
    assert load(str(path))[1]["accepted"] == 2
    assert accepted(db) == [0, 1]


@pytest.mark.parametrize("args", [["nowhere.jsonl"], ["."], ["jobs.jsonl", "--rejected", "jobs.jsonl"]])
def test_file_that_cannot_be_read_is_named(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    content = write(tmp_path / "jobs.jsonl", adds(0, 1))
    assert invoke(["import", *args]) == 2
    assert args[0] in capsys.readouterr().err
    assert Path(content).read_text()
