"""The command line on real servers: enqueueing, looking, acting on jobs in bulk, queues, schedules, the schema, failures."""

from __future__ import annotations

import json
import os
import pty
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import psycopg
import pytest

from tests import harness
from tests.harness import Relay, create_database, drop_database, eventually, forget
from tests.integration.conftest import Bench
from tests.sample_tasks import add, echo, fail
from worker.cli.program import invoke
from worker.embedded import Stack

ADD, ECHO, FAIL = add.name, echo.name, fail.name


class Said(NamedTuple):
    """What a command ended with."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def holdfast(env: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command line in this process."""

    def run(*args: str) -> Said:
        capsys.readouterr()
        code = invoke(list(args))
        return Said(code, *capsys.readouterr())

    return run


def program(*args: str, stdin: IO[Any] | None = None, **env: str) -> Said:
    """Run a command line in a process of its own."""
    done = harness.run("worker.cli", *args, stdin=stdin, env=env)
    return Said(done.returncode, done.stdout, done.stderr)


def test_a_job_is_run_shown_listed_and_cancelled_without_a_worker(env: dict[str, str]) -> None:
    include = {"HOLDFAST_INCLUDE": "tests.sample_tasks"}
    accepted = program("run", ECHO, "1", '{"b": 2}', "--priority", "3", "--caller", "me", "--json", **include)
    assert (accepted.code, accepted.err) == (0, "")
    job = accepted.document
    assert (job["state"], job["args"], job["priority"], job["caller"]) == ("queued", "[1, {'b': 2}]", 3, "me")
    assert job["created_at"].endswith("+00:00")

    (listed,) = program("jobs", "ls", "--json").document
    assert listed["id"] == job["id"]
    assert job["id"] in program("jobs", "ls").out
    assert program("jobs", "show", job["id"], "--json").document["task"] == ECHO

    assert program("jobs", "cancel", job["id"]) == (0, f"cancelled: {job['id']}\n", "")
    assert program("jobs", "show", job["id"], "--json").document["state"] == "cancelled"
    again = program("jobs", "cancel", job["id"])
    assert (again.code, again.out) == (1, "")
    assert again.err == f"holdfast: job {job['id']} is cancelled; there is nothing to cancel\n"


def test_run_prints_the_id_alone(holdfast: Callable[..., Said], bench: Bench) -> None:
    said = holdfast("run", ADD, "1", "--kwargs", '{"y": 2}')
    assert said == (0, bench.ids()[0] + "\n", "")
    bench.work()
    assert holdfast("jobs", "show", said.out.strip(), "--json").document["result"] == 3


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["run", "tests.sample_tasks.ad", "1"], "did you mean tests.sample_tasks.add"),
        (["run", ADD], f"{ADD}: kwargs.x: 'x' is missing; it is called as {ADD}(x, y)"),
        (["run", ADD, "1", "2", "3"], "args.2: there are 3 arguments, and it takes 2"),
        (["run", ADD, "1", '"2"'], f"{ADD}: args.1: Input should be a valid integer"),
        (["run", ADD, "1", "2", "--queue", "defalt"], "no queue 'defalt' in HOLDFAST_QUEUES; did you mean default?"),
        (["queues", "pause", "defalt"], "did you mean default?"),
        (["schedules", "add", "s", "nope", "--every", "1m"], "no task 'nope' is registered"),
        (["schedules", "add", "s", ADD, "1", "2", "--cron", "x"], "crontab 'x' has 1 fields"),
        (["jobs", "ls", "--before", "x"], "'x' is not a cursor"),
        (["jobs", "cancel"], "which jobs to cancel?"),
        (["jobs", "cancel", "x", "--task", ADD], "either ids or filters"),
        (["jobs", "retry", "--queue", "default", "--state", "failed"], "--state"),
        (["jobs", "replay", "--state", "queued"], "only succeeded, failed"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_accepted(
    holdfast: Callable[..., Said], line: list[str], told: str
) -> None:
    said = holdfast(*line)
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert told in said.err
    assert holdfast("jobs", "ls", "--json").document == holdfast("schedules", "ls", "--json").document == []


def test_what_is_not_there_ends_with_5(holdfast: Callable[..., Said]) -> None:
    for line in (["jobs", "show"], ["jobs", "retry"], ["jobs", "cancel"], ["jobs", "replay"], ["schedules", "fire"]):
        said = holdfast(*line, "nope")
        assert (said.code, said.out) == (5, "")
        assert "'nope'" in said.err


def test_waiting_prints_the_result_or_tells_the_failure(holdfast: Callable[..., Said], bench: Bench) -> None:
    # The key finds a job that has ended meanwhile, so this process can wait for what it has run itself.
    holdfast("run", ADD, "1", "2", "--key", "sum")
    holdfast("run", FAIL, "too bad", "--key", "failure")
    bench.work()
    good = holdfast("run", ADD, "1", "2", "--key", "sum", "--wait")
    bad = holdfast("run", FAIL, "too bad", "--key", "failure", "--wait")
    assert (good.code, good.out) == (0, "3\n")
    assert (bad.code, bad.out) == (1, "")
    assert "failed: ValueError: too bad" in bad.err
    as_json = holdfast("run", FAIL, "too bad", "--key", "failure", "--wait", "--json")
    assert (as_json.code, as_json.document["state"]) == (1, "failed")
    late = holdfast("run", ADD, "1", "2", "--in", "1h", "--wait", "--timeout", "50ms")
    assert (late.code, late.out) == (1, "")
    assert "has not ended within 0.05 s" in late.err


def test_pages_show_each_job_once_also_past_ones(holdfast: Callable[..., Said], bench: Bench) -> None:
    ids = [holdfast("run", ADD, str(n), "0").out.strip() for n in range(4)]
    bench.work()
    ids += [holdfast("run", ADD, str(n), "0", "--in", "1h").out.strip() for n in range(3)]
    pages, before = [], []
    while page := holdfast("jobs", "ls", "--limit", "2", *before, "--json").document:
        pages += [job["id"] for job in page]
        before = ["--before", page[-1]["cursor"]]
    assert pages == ids[::-1]


def test_filters_narrow_the_list(holdfast: Callable[..., Said], bench: Bench) -> None:
    first = holdfast("run", ADD, "1111", "0", "--caller", "me").out.strip()
    second = holdfast("run", FAIL).out.strip()
    bench.work()

    def found(*options: str) -> list[str]:
        return [job["id"] for job in holdfast("jobs", "ls", *options, "--json").document]

    assert found("--state", "failed") == found("--task", FAIL) == [second]
    assert found("--caller", "me") == found("--search", "1111") == [first]
    for all_of_them in (["--state", "failed", "--state", "succeeded"], ["--since", "1h"], ["--queue", "default"]):
        assert found(*all_of_them) == [second, first]
    assert found("--until", "1h") == found("--since", "2100-01-01") == found("--state", "running") == []


def test_bulk_by_filter_asks_for_yes_with_the_count(holdfast: Callable[..., Said]) -> None:
    for _ in range(3):
        holdfast("run", ADD, "1", "2", "--in", "1h")
    holdfast("run", FAIL, "--in", "1h")
    asked = holdfast("jobs", "cancel", "--task", ADD)
    assert (asked.code, asked.err) == (2, "holdfast: 3 jobs match; add --yes to cancel them\n")
    done = holdfast("jobs", "cancel", "--task", ADD, "--yes", "--json")
    assert (done.code, len(done.document["done"]["cancelled"]), done.document["refused"]) == (0, 3, {})
    assert [job["task"] for job in holdfast("jobs", "ls", "--state", "scheduled", "--json").document] == [FAIL]
    assert holdfast("jobs", "cancel", "--task", ADD, "--yes").err == "holdfast: no job matches\n"


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 0), ("n", 1, 2)])
def test_bulk_asks_on_a_terminal(env: dict[str, str], holdfast: Callable[..., Said], answer: str, code: int, left: int) -> None:
    for _ in range(2):
        holdfast("run", ADD, "1", "2", "--in", "1h")
    mine, theirs = pty.openpty()
    os.write(mine, f"{answer}\n".encode())
    with os.fdopen(theirs) as terminal:
        said = program("jobs", "cancel", "--queue", "default", stdin=terminal)
    os.close(mine)
    assert "cancel 2 jobs? [y/N]" in said.err
    assert said.code == code
    assert len(holdfast("jobs", "ls", "--state", "scheduled", "--json").document) == left


def test_retry_runs_scheduled_jobs_now(holdfast: Callable[..., Said], bench: Bench, relay: Any) -> None:
    job_id = holdfast("run", ADD, "1", "2", "--in", "1h").out.strip()
    assert holdfast("jobs", "retry", job_id) == (0, f"due now: {job_id}\n", "")
    again = holdfast("jobs", "retry", job_id)
    assert (again.code, again.err) == (1, f"holdfast: job {job_id} is queued, not waiting for its time\n")
    relay.round()
    assert bench.work() == [job_id]
    assert "jobs replay" in holdfast("jobs", "retry", job_id).err


def test_replay_takes_what_failed_and_has_not_succeeded_since(
    holdfast: Callable[..., Said], bench: Bench, relay: Any, db: psycopg.Connection[Any]
) -> None:
    good, bad = holdfast("run", ADD, "1", "2").out.strip(), holdfast("run", FAIL).out.strip()
    mended = holdfast("run", FAIL).out.strip()
    bench.work()
    assert holdfast("jobs", "replay", good, mended) == (0, "queued again: 2 jobs\n", "")
    assert holdfast("jobs", "replay", good).code == 1
    relay.round()
    bench.work()
    db.execute("UPDATE job_history SET state = 'succeeded' WHERE id = %s AND revision > 0", (mended,))
    done = holdfast("jobs", "replay", "--queue", "default", "--yes", "--json")
    assert (done.code, done.document) == (0, {"done": {"queued again": [bad]}, "refused": {}})


def test_queues_are_listed_paused_and_resumed(holdfast: Callable[..., Said]) -> None:
    holdfast("run", ADD, "1", "2")
    assert holdfast("queues", "pause", "default") == (0, "paused: default\n", "")
    (queue,) = holdfast("queues", "ls", "--json").document
    assert (queue["queue"], queue["paused"], queue["backlog"], queue["sent"], queue["in_redis"]) == ("default", True, 1, 0, 1)
    assert "paused" in holdfast("queues", "ls").out
    assert holdfast("queues", "resume", "default") == (0, "resumed: default\n", "")
    assert not holdfast("queues", "ls", "--json").document[0]["paused"]


def test_queue_keeps_to_its_own_window(holdfast: Callable[..., Said]) -> None:
    assert holdfast("queues", "window", "default", "2") == (0, "window of default: 2\n", "")
    for _ in range(4):
        holdfast("run", ADD, "1", "2")
    (queue,) = holdfast("queues", "ls", "--json").document
    assert (queue["window"], queue["sent"], queue["in_redis"], queue["backlog"]) == (2, 2, 2, 2)
    assert "from 1 to 100000" in holdfast("queues", "window", "default", "0").err
    assert holdfast("queues", "window", "default").out == "window of default: as the setting says\n"
    assert holdfast("queues", "ls", "--json").document[0]["window"] > 2


def test_queues_are_listed_without_redis(holdfast: Callable[..., Said], stack: Stack) -> None:
    stack.redis.kill()
    said = holdfast("queues", "ls", "--json")
    assert (said.code, said.document[0]["in_redis"]) == (0, None)


def test_workers_are_listed(holdfast: Callable[..., Said], bench: Bench) -> None:
    (worker,) = holdfast("workers", "ls", "--json").document
    assert (worker["name"], worker["status"], worker["queues"], worker["running"]) == ("bench", "up", ["default"], 0)
    assert "bench" in holdfast("workers", "ls").out


def test_schedules_are_added_edited_paused_fired_and_removed(holdfast: Callable[..., Said], bench: Bench) -> None:
    added = holdfast("schedules", "add", "nightly", ADD, "1", "2", "--cron", "0 3 * * *", "--timezone", "Europe/Berlin", "--json")
    assert (added.code, added.document["args"], added.document["crontab"]) == (0, [1, 2], "0 3 * * *")
    edited = holdfast("schedules", "edit", "nightly", "--every", "1m", "--args", "[3, 4]", "--priority", "1", "--json").document
    assert (edited["every_s"], edited["crontab"], edited["args"], edited["options"]) == (60.0, None, [3, 4], {"priority": 1})
    wrong = holdfast("schedules", "edit", "nightly", "--args", "[3, 4, 5]")
    assert (wrong.code, "args.2: there are 3 arguments" in wrong.err) == (2, True)
    assert holdfast("schedules", "pause", "nightly").out == "paused: nightly\n"
    assert "paused" in holdfast("schedules", "ls").out
    fired = holdfast("schedules", "fire", "nightly").out.strip()
    assert bench.work() == [fired]
    assert holdfast("schedules", "resume", "nightly").code == holdfast("schedules", "rm", "nightly").code == 0
    assert holdfast("schedules", "rm", "nightly").code == 5


@pytest.fixture
def empty_database(env: dict[str, str], stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A database without our schema."""
    monkeypatch.setenv("DATABASE_URL", create_database(stack.postgres.url, "empty"))
    forget()
    yield
    forget()
    drop_database(stack.postgres.url, "empty")


@pytest.mark.usefixtures("empty_database")
def test_real_servers_are_migrated_by_db_upgrade_alone(holdfast: Callable[..., Said]) -> None:
    for line in (["db", "check"], ["jobs", "ls"], ["relay"], ["worker"], ["beat"], ["up"]):
        said = holdfast(*line)
        assert (said.code, said.out) == (1, "")
        assert "run `holdfast db upgrade`" in said.err
    assert holdfast("db", "upgrade").code == 0
    assert holdfast("db", "check") == (0, "the schema is up to date\n", "")


def test_an_evicting_redis_is_refused_with_the_fix(holdfast: Callable[..., Said], redis: Any) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        for line in (["relay"], ["worker"], ["beat"], ["up"]):
            said = holdfast(*line)
            assert said.code == 2
            assert "set `maxmemory-policy noeviction` on it" in said.err
    finally:
        redis.config_set("maxmemory-policy", "noeviction")


def test_postgres_that_is_away_ends_every_command_with_3(holdfast: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://x@127.0.0.1:1/x")
    forget()
    for line in (["jobs", "ls"], ["run", ADD, "1", "2"], ["db", "check"], ["db", "upgrade"], ["relay"], ["worker"], ["up"]):
        said = holdfast(*line)
        assert (said.code, said.out) == (3, "")
        assert said.err.startswith("holdfast: Postgres did not answer")
        assert said.err.count("\n") == 1


def test_a_wrong_setting_is_named(holdfast: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_WINDOW", "many")
    forget()
    said = holdfast("jobs", "ls")
    assert (said.code, "HOLDFAST_WINDOW" in said.err) == (2, True)
    missing = program("run", "x", HOLDFAST_INCLUDE="no_such_module", HOLDFAST_WINDOW="10")
    assert (missing.code, "No module named 'no_such_module'" in missing.err, missing.err.count("\n")) == (2, True, 1)


def test_the_relay_sends_what_is_due_and_stops_when_asked(
    holdfast: Callable[..., Said], launch: Callable[[Relay], Relay], redis: Any, bench: Bench
) -> None:
    relay = launch(Relay())
    job_id = holdfast("run", ADD, "1", "2", "--in", "200ms").out.strip()
    eventually(lambda: bench.ids() == [job_id])
    assert relay.stop(10) == 0


def test_the_embedded_stack_is_joined_and_migrated_by_any_command(env: dict[str, str], tmp_path: Any) -> None:
    own = {"DATABASE_URL": "", "REDIS_URL": "", "CACHE_URL": "", "HOLDFAST_HOME": str(tmp_path / "home")}
    accepted = program("run", ADD, "1", "2", HOLDFAST_INCLUDE="tests.sample_tasks", **own)
    assert (accepted.code, accepted.err) == (0, "")
    assert program("jobs", "show", accepted.out.strip(), "--json", **own).document["state"] == "queued"
