"""The demo's own tasks: each leaves one row as its effect, written through the job's session."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from worker.app import app
from worker.cli.demo import record


def _work(task: Any, entrance: str, work_ms: float) -> None:
    """Take effect, then go on working: who is killed now has written, but not committed."""
    record.take_effect(task.session, task.request.id, entrance)
    time.sleep(work_ms / 1000)


@app.task(name="demo.effect", bind=True)  # type: ignore[untyped-decorator]
def effect(self: Any, entrance: str, work_ms: float = 0.0) -> int:
    """Take effect once and return 1."""
    _work(self, entrance, work_ms)
    return 1


@app.task(name="demo.link", bind=True)  # type: ignore[untyped-decorator]
def link(self: Any, before: int, entrance: str, work_ms: float = 0.0) -> int:
    """Take effect and return one more than the link before."""
    _work(self, entrance, work_ms)
    return before + 1


@app.task(name="demo.gather", bind=True)  # type: ignore[untyped-decorator]
def gather(self: Any, parts: Sequence[int], entrance: str, expected: int) -> int:
    """Take effect and return the sum of a chord's parts. Raises `ValueError` when some are missing."""
    if sum(parts) != expected:
        raise ValueError(f"the chord's parts make {sum(parts)}, not {expected}")
    _work(self, entrance, 0.0)
    return sum(parts)
