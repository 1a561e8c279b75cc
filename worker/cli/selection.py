"""Which jobs a command is to act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import TYPE_CHECKING

from worker.wording import did_you_mean

if TYPE_CHECKING:
    from worker.ledger.manage import Filter


def choose(
    states: Sequence[str] | None, task: str | None, queue: str | None, caller: str | None,
    since: datetime | None, until: datetime | None, search: str | None,
) -> Filter:  # fmt: skip
    """Return the filter that the options of a command make. Raises `ValueError` for a state that is none."""
    from worker.ledger.manage import Filter
    from worker.states import JobState

    for state in states or ():
        if state not in set(JobState):
            raise ValueError(f"--state: {state!r} is not a state{did_you_mean(state, JobState)}")
    return Filter(list(states) if states else None, task, queue, caller, since, until, search)


def is_empty(which: Filter) -> bool:
    """Tell whether the filter narrows nothing."""
    return all(getattr(which, field.name) is None for field in fields(which))
