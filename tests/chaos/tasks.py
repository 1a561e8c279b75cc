"""Tasks for the chaos tests: their effects are rows that may repeat, so that a duplicate shows."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from sqlalchemy import text

from worker import faults
from worker.app import app
from worker.engine.run import current

_EFFECT = text("INSERT INTO chaos_effects (job_id, note, pid) VALUES (:job, :note, :pid)")


def _write(task: Any, note: str) -> None:
    task.session.execute(_EFFECT, {"job": task.request.id, "note": note, "pid": os.getpid()})


def _is_first_attempt() -> bool:
    run = current()
    return run is not None and run.claim.attempt == 1


@app.task(bind=True)
def write(self: Any, note: str = "", seconds: float = 0.0) -> str:
    """Take a while, then write the effect."""
    time.sleep(seconds)
    _write(self, note)
    return note


@app.task(bind=True)
def hold(self: Any, note: str = "", seconds: float = 0.0, locked: bool = True) -> str:
    """Write the effect, then take a while: the transaction stays open meanwhile, with a lock on the name of the effect or not."""
    if locked:
        self.once("held")
    _write(self, note)
    time.sleep(seconds)
    return note


@app.task(bind=True)
def die_at(self: Any, fault: str, note: str = "") -> str:
    """Write the effect; the first attempt arms this process, to meet the fault as it ends."""
    _write(self, note)
    if _is_first_attempt():
        faults.arm(fault)
    return note


@app.task
def arm(fault: str) -> None:
    """Arm this process, so that its next job meets the fault."""
    faults.arm(fault)


@app.task(bind=True)
def kill_child(self: Any) -> None:
    """Write an effect and kill the process that runs this."""
    _write(self, "poison")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True)
def kill_tree(self: Any) -> None:
    """Write an effect and kill the whole worker."""
    _write(self, "poison")
    os.killpg(0, signal.SIGKILL)


@app.task(bind=True)
def part(self: Any, n: int, note: str, seconds: float = 0.0) -> int:
    """Return a number, with an effect."""
    time.sleep(seconds)
    _write(self, note)
    return n


@app.task(bind=True)
def add(self: Any, n: int, more: int, note: str) -> int:
    """Return the sum of what came before and of a number, with an effect."""
    _write(self, note)
    return n + more


@app.task(bind=True)
def total(self: Any, numbers: list[int], note: str) -> int:
    """Return the sum of a header's results, with an effect."""
    _write(self, note)
    return sum(numbers)


@app.task(bind=True, max_retries=5)
def part_after_retry(self: Any, n: int, note: str) -> int:
    """Return a number at the second try; the first one's effect must not stay."""
    _write(self, note)
    if self.request.retries == 0:
        raise self.retry(countdown=0.2)
    return n


@app.task(bind=True)
def replaced_part(self: Any, n: int, note: str) -> None:
    """Replace itself by a chain that returns `n + 1`."""
    raise self.replace(part.si(n, f"{note}-a") | add.s(1, f"{note}-b"))


@app.task(bind=True)
def fail(self: Any, note: str) -> None:
    """Write an effect and fail, so that it does not stay."""
    _write(self, note)
    raise ValueError(note)


@app.task(bind=True)
def on_error(self: Any, note: str) -> None:
    """Write an effect because a job failed."""
    _write(self, note)
