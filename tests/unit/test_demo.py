"""Test how the demo plans, counts and judges; that it can fail is what makes its PASS worth something."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import pytest
from rich.console import Console

from worker.cli.demo import plan
from worker.cli.demo.book import Pace
from worker.cli.demo.figures import Evidence, Promise, count, verdict
from worker.cli.demo.plan import Entrance
from worker.cli.demo.screen import LineScreen, LiveScreen

#: One job of each kind that counts differently, all well.
KEPT = Evidence(
    planned=3,
    promises={
        "row": Promise(Entrance.DELAY), "call": Promise(Entrance.HTTP), "link": Promise(Entrance.CHAIN, later=True),
    },
    states=dict.fromkeys(("row", "call", "link"), "succeeded"),
    effects={"row": 1, "link": 1},
    requests={"call": 1},
    rolled_back=frozenset({"undone"}),
)  # fmt: skip


def _told(evidence: Evidence) -> tuple[bool, str]:
    figures = count(evidence, final=True)
    return figures.passed, verdict(figures, redis_losses=2, workers_killed=1, seconds=38.2)


def test_promises_that_were_kept_pass() -> None:
    passed, text = _told(KEPT)

    assert passed
    assert text == (
        "PASS: 3 jobs accepted, 3 done, 0 lost, 0 duplicate effects; Redis lost its memory 2 times, 1 worker killed, 38 s"
    )


def test_an_effect_that_was_taken_twice_fails() -> None:
    passed, text = _told(replace(KEPT, effects={"row": 2, "link": 1}))

    assert not passed
    assert text.startswith("FAIL: 3 jobs accepted, 3 done, 0 lost, 1 duplicate effect;")


def test_a_double_effect_of_a_job_nobody_was_told_of_fails() -> None:
    assert not _told(replace(KEPT, effects={**KEPT.effects, "stranger": 2}))[0]


@pytest.mark.parametrize("state", ["failed", "discarded", "cancelled", "expired", "queued", "scheduled", "running", None])
def test_a_job_that_did_not_succeed_in_the_end_is_lost(state: str | None) -> None:
    states = {job_id: known for job_id, known in {**KEPT.states, "row": state}.items() if known is not None}
    figures = count(replace(KEPT, states=states, effects={"link": 1}), final=True)

    assert not figures.passed
    assert (figures.total.lost, figures.total.done, figures.lost_ids) == (1, 2, ["row"])


@pytest.mark.parametrize("gone", [{"effects": {"link": 1}}, {"requests": {}}], ids=["row", "request"])
def test_a_job_that_succeeded_without_its_effect_is_lost(gone: dict) -> None:
    figures = count(replace(KEPT, **gone), final=True)

    assert not figures.passed
    assert figures.total.lost == 1


@pytest.mark.parametrize("trace", [{"states": {**KEPT.states, "undone": "queued"}}, {"effects": {**KEPT.effects, "undone": 1}}])
def test_a_job_whose_transaction_rolled_back_must_leave_no_trace(trace: dict) -> None:
    passed, text = _told(replace(KEPT, **trace))

    assert not passed
    assert "1 of 1 rolled back ran" in text


def test_a_repeated_http_request_is_told_but_is_no_duplicate_effect() -> None:
    figures = count(replace(KEPT, requests={"call": 3}), final=True)

    assert figures.passed
    assert (figures.requests, figures.requests_repeated, figures.total.duplicates) == (3, 2, 0)


def test_an_end_that_was_to_be_told_and_was_not_fails() -> None:
    passed, text = _told(replace(KEPT, callbacks=frozenset({"row", "call"}), told={"row": 2}))

    assert not passed
    assert "1 of 2 callbacks missing" in text
    kept = count(replace(KEPT, callbacks=frozenset({"row", "call"}), told={"row": 2, "call": 1}), final=True)
    assert kept.passed
    assert kept.as_dict()["callbacks"] == {"expected": 2, "missing": 0, "repeated": 1}


def test_jobs_that_no_caller_got_accepted_fail() -> None:
    passed, text = _told(replace(KEPT, planned=5))

    assert not passed
    assert "2 never accepted" in text


def test_ticks_of_the_schedule_do_not_stand_in_for_other_jobs() -> None:
    promises = {**KEPT.promises, "row": Promise(Entrance.SCHEDULE)}

    assert count(replace(KEPT, promises=promises), final=True).refused == 1


def test_while_it_runs_a_row_that_is_missing_is_lost_and_a_link_still_to_come_waits() -> None:
    figures = count(replace(KEPT, states={"call": "running"}, effects={}, requests={}))

    assert (figures.total.waiting, figures.total.running, figures.total.lost) == (1, 1, 1)
    assert figures.lost_ids == ["row"]


def test_a_seed_repeats_the_faults_and_another_one_changes_them() -> None:
    assert plan.make(5000, 7) == plan.make(5000, 7)
    assert len({(made.breaks, made.victim) for made in (plan.make(5000, seed) for seed in range(20))}) == 20


@pytest.mark.parametrize("jobs", [100, 101, 399, 400, 5000, 12_345])
def test_the_shares_make_up_the_jobs_and_every_entrance_gets_one(jobs: int) -> None:
    made = plan.make(jobs, 1)

    assert sum(made.shares.values()) == jobs
    assert set(made.shares) == set(Entrance) - {Entrance.SCHEDULE}
    assert min(made.shares.values()) > 0


@pytest.mark.parametrize("seed", range(20))
def test_faults_come_apart_and_while_there_is_work_left(seed: int) -> None:
    made = plan.make(5000, seed)
    moments = [one.at for one in made.breaks]

    assert {one.fault for one in made.breaks} == set(plan.Fault)
    assert moments == sorted(moments)
    assert moments[0] >= 0.1
    assert moments[-1] <= 0.85
    assert min(later - sooner for sooner, later in pairwise(moments)) >= 0.1


def test_too_few_jobs_are_refused() -> None:
    with pytest.raises(ValueError, match="99 is too few, the demo needs at least 100"):
        plan.make(99, 1)


@pytest.mark.parametrize("count", [0, 1, 7, 24, 25, 26, 1000])
def test_portions_add_up_and_are_even(count: int) -> None:
    portions = [plan.portion(count, number, 25) for number in range(25)]

    assert sum(portions) == count
    assert max(portions) - min(portions) <= 1


def test_a_single_one_is_pushed_in_the_middle() -> None:
    assert [plan.portion(1, number, 25) for number in range(25)].index(1) == 12


def test_callers_who_are_held_back_are_let_go_by_the_stop() -> None:
    pace = Pace(1000)
    pace.advance(500)
    assert pace.wait(0.6)

    pace.stop()
    assert not pace.wait(0.9)


def test_the_live_table_shows_every_entrance_and_what_broke() -> None:
    shown = LiveScreen()
    shown.show(count(replace(KEPT, effects={"row": 2, "link": 1})))
    shown.tell("everything burns")
    console = Console(file=io.StringIO(), width=110)
    console.print(shown._draw())
    text = console.file.getvalue()

    assert [line.split()[0] for line in text.splitlines()[1:16]] == [e.value.split()[0] for e in Entrance] + ["all"]
    assert text.splitlines()[15].split() == ["all", "3", "0", "0", "3", "3", "1", "0"]
    assert "rolled back by their caller: 1, of these ran: 0" in text
    assert text.splitlines()[-1].endswith("s  everything burns")


def test_without_a_terminal_the_table_goes_to_stdout_and_the_rest_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    shown = LineScreen(table=True)
    figures = count(KEPT, final=True)
    shown.tell("it begins")
    shown.show(figures)
    shown.show(figures)  # too soon for another line
    shown.close(figures)
    out, err = capsys.readouterr()

    assert len(err.splitlines()) == 2
    assert "accepted 3, waiting 0, running 0, done 3, effects 3, duplicates 0, lost 0" in err
    assert out.splitlines()[15].split() == ["all", "3", "0", "0", "3", "3", "0", "0"]
