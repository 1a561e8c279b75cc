"""The pure parts of the command line: reading what people type, exit codes, arguments for Celery, and what is not imported."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from worker import errors, typed
from worker.cli import parse
from worker.cli.exits import MEANINGS, ExitCode, code_of
from worker.cli.output import shown
from worker.cli.program import invoke
from worker.cli.worker import arguments, processes
from worker.clock import now
from worker.wording import did_you_mean

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("-2.5", -2.5), ('"1"', "1"), ("true", True), ('{"a": [1]}', {"a": [1]}), ("hello", "hello"), ("NaN", "NaN")],
)
def test_an_argument_is_json_when_it_is_and_text_otherwise(text: str, value: object) -> None:
    assert typed.json_value(text) == value


@pytest.mark.parametrize("text", ["[1]", "1", "{", "nonsense", '{"a": Infinity}'])
def test_wrong_keyword_arguments_are_named_with_the_accepted_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not (a )?JSON.*\{\"name\": \"value\"\}") as caught:
        typed.json_object(text)
    assert repr(text) in str(caught.value)


def test_a_past_moment_is_a_duration_ago_or_a_time() -> None:
    assert abs(now() - timedelta(hours=2) - parse.past("2h")) < timedelta(seconds=5)
    assert parse.past("2030-01-31T08:00:00+01:00") == datetime(2030, 1, 31, 7, tzinfo=UTC)
    for text in ("yesterday", "", "9999999999d"):
        with pytest.raises(ValueError, match=r"duration|before the year 1|neither"):
            parse.past(text)


def test_a_name_that_is_nearly_right_is_suggested() -> None:
    known = ["shop.mail.send_receipt", "shop.mail.send_reminder", "reports.build"] + [f"other.task_{n}" for n in range(20)]
    assert "did you mean shop.mail.send_receipt" in did_you_mean("shop.mail.send_reciept", known)
    assert did_you_mean("build", known) == "; did you mean reports.build?"
    assert did_you_mean("zzz", known) == ""
    assert did_you_mean("zzz", ["a", "b"]) == "; known: a, b"
    assert did_you_mean("zzz", []) == ""


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.SettingsError, 2), (errors.LedgerUnavailable, 3), (errors.SchemaOutdated, 1), (errors.StoreUnavailable, 4),
        (errors.StoreFull, 4), (errors.InvalidJob, 2), (errors.UnknownTask, 2), (errors.InvalidSchedule, 2),
        (errors.JobNotFound, 5), (errors.ScheduleNotFound, 5), (errors.IdempotencyConflict, 1), (errors.HoldfastError, 1),
    ],
)  # fmt: skip
def test_every_failure_has_its_exit_code(kind: type[errors.HoldfastError], code: int) -> None:
    assert code_of(kind()) == code


def test_exit_codes_are_told_in_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert MEANINGS.keys() == set(ExitCode)
    assert invoke(["--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for code, meaning in MEANINGS.items():
        assert f"{code.value} {meaning}" in told


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["jbos"], "Did you mean 'jobs'"), (["run", "x", "--in", "10x"], "'--in': '10x' is not a duration"),
        (["run", "x", "--priority", "12"], "'--priority': Input should be less than or equal to 9, not '12'"),
        (["run", "x", "--kwargs", "[1]"], "'--kwargs': '[1]' is not a JSON object"), (["run"], "Missing argument"),
        (["run", "x", "--in", "1s", "--at", "2030-01-01"], "either --in or --at"), (["jobs", "ls", "--sate", "x"], "--sate"),
        (["jobs", "ls", "--state", "faild"], "did you mean failed"),
        (["worker", "--processes", "0"], "'0' is not a number of processes"),
        (["schedules", "edit", "x"], "what to change"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line_on_stderr(line: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(line) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("holdfast: ")
    assert err.count("\n") == 1
    assert told in err


def test_starting_up_imports_nothing_heavy() -> None:
    program = "import sys; from worker.cli import main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {"celery", "kombu", "sqlalchemy", "psycopg", "redis", "alembic", "pydantic", "flower", "rich.table"}.isdisjoint(loaded)


def test_application_and_gateway_start_without_what_only_transactions_and_migrations_need() -> None:
    program = "import sys, worker.app, worker.cli.relay, worker.gateway; worker.app.app.finalize(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {"sqlalchemy", "models", "alembic"}.isdisjoint(loaded)
    assert {"psycopg", "celery", "fastapi"} <= set(loaded)


def test_processes_are_a_number_or_one_a_cpu() -> None:
    assert processes("3") == 3
    assert processes("auto") >= 1
    for text in ("0", "-1", "many", "1.5", "100000", "²"):
        with pytest.raises(ValueError, match="number of processes"):
            processes(text)


def test_a_worker_starts_on_the_sound_base_options() -> None:
    quiet = arguments("w@%h", "a,b", 2, "threads", False, "INFO", ["--max-tasks-per-child", "5"])
    assert quiet[0] == "worker"
    assert {"--without-gossip", "--without-mingle", "--without-heartbeat"} < set(quiet)
    assert quiet[-2:] == ["--max-tasks-per-child", "5"]
    told = arguments(None, None, None, None, True, "INFO", [])
    assert "-E" in told
    assert "--without-heartbeat" not in told
    assert not {"-n", "-Q", "-c", "-P"} & set(told)


def test_flower_always_asks_for_a_password(capfd: pytest.CaptureFixture[str]) -> None:
    from worker.cli.flower import arguments as flower

    made_up = flower("", 5555, None, [])
    assert {"--address=127.0.0.1", "--port=5555", "--persistent=False"} < set(made_up)
    password = made_up[-1].removeprefix("--basic_auth=holdfast:")
    assert len(password) >= 16
    assert password in capfd.readouterr().err
    assert flower("", 5555, None, [])[-1] != made_up[-1]
    assert {"--address=", "--basic_auth=me:secret"} < set(flower("me:secret", 5555, None, []))


def test_what_is_shown_cannot_steer_a_terminal() -> None:
    assert shown("red \x1b[31m\x07 text") == "red \\x1b[31m\\x07 text"
    assert shown("two\nlines") == "two\nlines"
    assert shown(datetime(2030, 1, 31, 8, tzinfo=UTC)) == "2030-01-31 08:00:00"
    assert (shown(None), shown(True), shown({"a": 1})) == ("", "yes", '{"a": 1}')


def test_version_names_what_it_stands_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["version"]) == 0
    told = dict(line.split(" ") for line in capsys.readouterr().out.splitlines())
    assert {"holdfast", "python", "celery"} < told.keys()
