"""What the demo pushes through which entrance, and what breaks when: all of it follows from the number of jobs and the seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random

#: Below this some entrance would get no job, and the work would be over before everything could break.
LEAST_JOBS = 100
#: Workers the demo runs; one of them is killed.
WORKERS = 2
#: Links of a chain.
LINKS = 3
#: Parts of the chord, its body not counted.
PARTS = 50
#: The spans of the work, as parts of the jobs done, in which something breaks: apart, so that each finds the system at work.
_SPANS = ((0.15, 0.30), (0.40, 0.55), (0.65, 0.80))


class Entrance(StrEnum):
    """A way into Holdfast; the value is what people read."""

    MANY = "enqueue_many()"
    DELAY = ".delay()"
    TRANSACTION = "caller's transaction"
    HTTP = "http.call"
    CHAIN = "chains of 3"
    CHORD = "a chord of 50"
    FOREIGN = "foreign Celery client"
    FLOWER = "Flower REST"
    GATEWAY = "HTTP gateway"
    SQL = "SQL function"
    STREAM = "Redis stream"
    IMPORT = "holdfast import"
    COMMAND = "holdfast run"
    SCHEDULE = "a schedule, every 1 s"


class Fault(StrEnum):
    """A thing that breaks."""

    FLUSH = "flush"
    KILL = "kill"
    RESTART = "restart"


@dataclass(frozen=True)
class Break:
    """A fault, and when it comes: at this part of the jobs done."""

    fault: Fault
    at: float


@dataclass(frozen=True)
class Plan:
    """The course of one demo."""

    seed: int
    jobs: int
    #: Jobs by entrance; the ticks of the schedule come on top.
    shares: Mapping[Entrance, int]
    breaks: tuple[Break, ...]
    #: Number, from 1, of the worker that is killed.
    victim: int

    @property
    def rolled_back(self) -> int:
        """How many jobs are enqueued in transactions that roll back: as many as in those that commit."""
        return self.shares[Entrance.TRANSACTION]

    def random(self, purpose: str) -> Random:
        """Return random numbers of this seed for one purpose, whatever others draw meanwhile."""
        return Random(f"{self.seed}:{purpose}")


def make(jobs: int, seed: int) -> Plan:
    """Return the plan for so many jobs under this seed. Raises `ValueError`."""
    if jobs < LEAST_JOBS:
        raise ValueError(f"--jobs: {jobs} is too few, the demo needs at least {LEAST_JOBS}")
    random = Random(seed)
    faults = random.sample(list(Fault), len(Fault))
    breaks = tuple(Break(fault, random.uniform(*span)) for fault, span in zip(faults, _SPANS, strict=True))
    return Plan(seed, jobs, _shares(jobs), breaks, random.randint(1, WORKERS))


def _shares(jobs: int) -> dict[Entrance, int]:
    shares = {
        Entrance.DELAY: jobs // 10,
        Entrance.TRANSACTION: jobs // 20,
        Entrance.HTTP: jobs // 20,
        Entrance.CHAIN: jobs // 50 * LINKS,
        Entrance.CHORD: PARTS + 1,
        Entrance.FOREIGN: jobs // 20,
        Entrance.FLOWER: jobs // 100,
        Entrance.GATEWAY: jobs // 40,
        Entrance.SQL: jobs // 40,
        Entrance.STREAM: jobs // 40,
        Entrance.IMPORT: jobs // 40,
        # Each is a process that imports Celery: a few show that it works, many would only heat the machine.
        Entrance.COMMAND: max(1, min(3, jobs // 200)),
    }
    return {Entrance.MANY: jobs - sum(shares.values()), **shares}


def portion(count: int, number: int, rounds: int) -> int:
    """Return how many of `count` belong to round `number` (from 0) when they are spread evenly; a single one is in the middle."""
    half = rounds // 2
    return (count * (number + 1) + half) // rounds - (count * number + half) // rounds
