"""Counting: what callers were told, held against what the record and the counting server say. Pure, so it can be tested."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field
from typing import Any

from worker.cli.demo.plan import Entrance

#: Ids a report names; the counts beside them are whole.
_NAMED = 20


@dataclass(frozen=True, slots=True)
class Promise:
    """A job whose id a caller was told."""

    entrance: Entrance
    #: Whether its row comes only when the job before it ends: a link of a chain, the body of a chord.
    later: bool = False


@dataclass(frozen=True)
class Evidence:
    """All there is to judge by, at one moment."""

    #: Jobs that callers were to enqueue; the ticks of the schedule come on top.
    planned: int
    promises: Mapping[str, Promise]
    #: The state of each job that has a row, living or past.
    states: Mapping[str, str]
    #: Rows of effect by job.
    effects: Mapping[str, int]
    #: Requests at the counting server by job.
    requests: Mapping[str, int] = field(default_factory=dict)
    #: Jobs enqueued in transactions that rolled back.
    rolled_back: Set[str] = frozenset()
    #: Jobs whose ends were to be told to the counting server, and how often it was told of each.
    callbacks: Set[str] = frozenset()
    told: Mapping[str, int] = field(default_factory=dict)
    #: Attempts that died with their worker, and foreign messages that Redis lost before they were adopted.
    died: int = 0
    sent_again: int = 0


@dataclass
class Count:
    """How far the jobs of an entrance are."""

    accepted: int = 0
    waiting: int = 0
    running: int = 0
    done: int = 0
    effects: int = 0
    duplicates: int = 0
    lost: int = 0

    @property
    def open(self) -> int:
        """Jobs from which something is still to come."""
        return self.waiting + self.running


@dataclass
class Figures:
    """The account."""

    total: Count
    entrances: dict[Entrance, Count]
    #: Jobs enqueued in transactions that rolled back, and those of them of which there is any trace.
    rolled_back: int
    rolled_back_ran: int
    #: Requests at the counting server, and those of them that repeat another: an HTTP call is made at least once.
    requests: int
    requests_repeated: int
    #: Jobs whose ends were to be told, those of them of which nothing was heard, and the callbacks that repeat another.
    callbacks: int
    callbacks_missing: int
    callbacks_repeated: int
    #: Jobs that no caller got accepted.
    refused: int
    #: Attempts that died with their worker, so that their jobs ran again.
    died: int
    #: Foreign messages that Redis lost before they were adopted, so that their client sent them again.
    sent_again: int
    lost_ids: list[str]

    @property
    def passed(self) -> bool:
        """Whether every promise was kept."""
        broken = self.refused or self.total.lost or self.total.duplicates or self.rolled_back_ran or self.callbacks_missing
        return not broken

    def as_dict(self) -> dict[str, Any]:
        """Return the account for programs."""
        return {
            **asdict(self.total),
            "lost_ids": self.lost_ids,
            "refused": self.refused,
            "rolled_back": {"enqueued": self.rolled_back, "ran": self.rolled_back_ran},
            "http": {"requests": self.requests, "repeated": self.requests_repeated},
            "callbacks": {
                "expected": self.callbacks, "missing": self.callbacks_missing, "repeated": self.callbacks_repeated,
            },
            "attempts_died": self.died, "foreign_sent_again": self.sent_again,
            "entrances": {entrance.name.lower(): asdict(count) for entrance, count in self.entrances.items()},
        }


def count(evidence: Evidence, *, final: bool = False) -> Figures:
    """Return the account. At the end (`final`) a job that still waits or runs is lost, too.

    Lost is who was promised and: has no row, ended otherwise than well, or ended well and had no effect.
    """
    counts = {entrance: Count() for entrance in Entrance}
    lost: list[str] = []
    for job_id, promise in evidence.promises.items():
        one = counts[promise.entrance]
        one.accepted += 1
        had = (evidence.requests if promise.entrance is Entrance.HTTP else evidence.effects).get(job_id, 0)
        one.effects += min(had, 1)
        how = _standing(evidence.states.get(job_id), promise, had > 0, final)
        setattr(one, how, getattr(one, how) + 1)
        if how == "lost":
            lost.append(job_id)
        if promise.entrance is not Entrance.HTTP:
            one.duplicates += max(had - 1, 0)
    total = Count(*(sum(getattr(one, name) for one in counts.values()) for name in Count.__dataclass_fields__))
    # Of all rows, so that an effect of a job nobody was told of cannot hide.
    total.duplicates = sum(rows - 1 for rows in evidence.effects.values())
    ran = sum(job_id in evidence.states or job_id in evidence.effects for job_id in evidence.rolled_back)
    requests = sum(evidence.requests.values())
    refused = evidence.planned - (total.accepted - counts[Entrance.SCHEDULE].accepted)
    return Figures(
        total, counts, rolled_back=len(evidence.rolled_back), rolled_back_ran=ran, requests=requests,
        requests_repeated=requests - len(evidence.requests), callbacks=len(evidence.callbacks),
        callbacks_missing=len(evidence.callbacks - evidence.told.keys()),
        callbacks_repeated=sum(evidence.told.values()) - len(evidence.told),
        refused=refused, died=evidence.died, sent_again=evidence.sent_again,
        lost_ids=sorted(lost)[:_NAMED],
    )  # fmt: skip


def _standing(state: str | None, promise: Promise, had_effect: bool, final: bool) -> str:
    match state:
        case "succeeded":
            return "done" if had_effect else "lost"
        case "scheduled" | "queued" if not final:
            return "waiting"
        case "running" if not final:
            return "running"
        case None if promise.later and not final:
            return "waiting"
        case _:
            return "lost"


def verdict(figures: Figures, *, redis_losses: int, workers_killed: int, seconds: float) -> str:
    """Return the plain verdict, one line."""
    total = figures.total
    parts = [
        f"{total.accepted:,} jobs accepted", f"{total.done:,} done", f"{total.lost:,} lost",
        f"{total.duplicates:,} duplicate effect{'' if total.duplicates == 1 else 's'}",
        *([f"{figures.refused:,} never accepted"] if figures.refused else []),
        *([f"{figures.callbacks_missing:,} of {figures.callbacks:,} callbacks missing"] if figures.callbacks_missing else []),
        *([f"{figures.rolled_back_ran:,} of {figures.rolled_back:,} rolled back ran"] if figures.rolled_back_ran else []),
    ]  # fmt: skip
    times = f"{redis_losses} time{'' if redis_losses == 1 else 's'}"
    killed = f"{workers_killed} worker{'' if workers_killed == 1 else 's'} killed"
    word = "PASS" if figures.passed else "FAIL"
    return f"{word}: {', '.join(parts)}; Redis lost its memory {times}, {killed}, {seconds:.0f} s"
