"""Who is given a job next: a free child first, then one whose jobs are short, and nobody a second one that waits."""

from __future__ import annotations

import time

import pytest

from worker.engine.ahead import SHORT_S, Busy

A, B = 11, 12


class Clock:
    """A monotonic clock that stands still until told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def busy(clock: Clock) -> Busy:
    return Busy({A, B}, lambda: True)


def run(busy: Busy, clock: Clock, child: int, seconds: float) -> None:
    busy.add(child)
    clock.now += seconds
    busy.done(child)


def test_child_that_runs_its_first_job_is_busy(busy: Busy) -> None:
    busy.add(A)
    assert (A in busy, B in busy, len(busy), busy.ahead()) == (True, False, 1, 0)


def test_child_with_short_jobs_is_given_one_ahead_when_no_other_is_free(busy: Busy, clock: Clock) -> None:
    run(busy, clock, A, SHORT_S / 2)
    busy.add(A)
    assert A in busy, "the other is free"
    busy.add(B)
    assert (A in busy, B in busy, len(busy), busy.ahead()) == (False, True, 1, 1)
    busy.add(A)
    assert A in busy, "one waits already"


def test_child_with_a_long_job_is_given_none_ahead(busy: Busy, clock: Clock) -> None:
    run(busy, clock, A, SHORT_S / 2)
    run(busy, clock, A, SHORT_S * 2)
    busy.add(A)
    busy.add(B)
    assert (A in busy, len(busy), busy.ahead()) == (True, 2, 0)


def test_time_of_a_job_that_waited_begins_with_the_end_of_the_one_before(busy: Busy, clock: Clock) -> None:
    busy.add(A)
    busy.add(A)
    busy.add(B)
    clock.now += SHORT_S * 2
    busy.done(A)
    clock.now += SHORT_S / 2
    busy.done(A)
    busy.add(A)
    assert busy.ahead() == 1


def test_message_that_may_not_wait_is_given_to_a_free_child_only(clock: Clock) -> None:
    busy = Busy({A}, lambda: False)
    run(busy, clock, A, SHORT_S / 2)
    busy.add(A)
    assert A in busy


def test_child_from_which_a_message_was_taken_back_is_given_none_until_a_short_job_has_ended(busy: Busy, clock: Clock) -> None:
    run(busy, clock, A, SHORT_S / 2)
    busy.add(B)
    busy.add(A)
    busy.add(A)
    busy.taken_back(A)
    assert (A in busy, busy.ahead()) == (True, 0)
    busy.done(A)
    assert A not in busy


def test_child_that_has_gone_is_forgotten(busy: Busy, clock: Clock) -> None:
    run(busy, clock, A, SHORT_S / 2)
    busy.add(A)
    busy.discard(A)
    assert A not in busy
    busy.add(A)
    busy.add(B)
    assert busy.ahead() == 0


def test_end_of_a_job_nobody_knows_of_frees_no_child_twice(busy: Busy) -> None:
    busy.done(A)
    busy.add(A)
    assert A in busy


def test_after_a_broken_connection_only_what_runs_counts(busy: Busy) -> None:
    for child in (A, A, B):
        busy.add(child)
    busy.intersection_update({A})
    busy.done(A)
    assert (A in busy, B in busy, len(busy)) == (False, False, 0)
