"""The jobs that keep the cache warm: `cache.warm` by beat, `cache.refresh` for loaders declared with `refresh="job"`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from worker.app import app
from worker.cache import hot, loaders
from worker.cache.warm import BUDGET_S, MOST, warm
from worker.errors import CacheConfigError, StoreUnavailable
from worker.ledger import statistics

#: What past reads count for after each run: half of it after three and a half minutes.
_DECAY = 0.9

#: Our own loaders, known to whoever warms.
_ = statistics


@app.task(name="cache.warm")  # type: ignore[untyped-decorator]
def warm_up(most: int = MOST, budget_s: float = BUDGET_S) -> list[dict[str, Any]]:
    """Refresh the planned and the hottest values that would soon be out of date; return what came of each, by key."""
    try:
        done = warm(most=most, budget_s=budget_s)
    finally:
        with suppress(StoreUnavailable):  # then nobody reads it either
            hot.decay(_DECAY)
    return [asdict(report) for report in done]


# A row for each would cost Postgres more than many a load. One that is lost costs nothing: its lease runs out.
@app.task(name="cache.refresh", durable=False, ignore_result=True)  # type: ignore[untyped-decorator]
def refresh(name: str, args: Sequence[Any], token: str) -> bool:
    """Refresh one value under the lease of who found it due; tell whether the cache has a newer one now."""
    known = loaders()
    if name not in known:
        raise CacheConfigError(f"no loader {name!r} is known to this worker: name its module in HOLDFAST_INCLUDE")
    return bool(known[name].resume(args, token).advanced)
