"""Keeping what is read most from going out of date: the planned and the hottest values, refreshed before their readers notice."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from worker.cache import hot
from worker.cache.cached import Cached, loaders
from worker.cache.peek import describe
from worker.cache.refreshing import Refreshed
from worker.errors import CacheKeyError, StoreUnavailable
from worker.store import aio
from worker.telemetry import log

logger = log(__name__)

#: A value is refreshed when it has no more than these seconds left of its ttl: one and a half times what lies between two runs of
#: beat, so that one which is a little late is not too late.
HORIZON_S = 45.0
#: Values one run refreshes at most, and seconds of loading after which it begins no other.
MOST, BUDGET_S = 50, 10.0


def warm(
    *, most: int = MOST, budget_s: float = BUDGET_S, horizon_s: float = HORIZON_S, pause: Callable[[float], None] = time.sleep
) -> list[Refreshed]:
    """Refresh what the code plans to keep warm, then what is read most, where it is missing or has `horizon_s` or less left.

    At most `most` values are loaded, and none is begun after `budget_s` seconds of loading. After each it rests for as long as
    that took, so that warming never takes more than half of a connection. Each load is under the lease of its key, as any other:
    what somebody loads just then is left to them. Returns what came of each, in order; `advanced` is true only where the server
    has a newer value than before. Never raises: what cannot be refreshed is told in its report.
    """
    done: list[Refreshed] = []
    spent_s = 0.0
    with _one_loop() as finished:
        for key, refresh in _candidates(most):
            if len(done) >= most or spent_s >= budget_s or (done and done[-1].outcome == "away"):
                break
            if not _is_near(key, horizon_s):
                continue
            try:
                report = finished(refresh())
            except CacheKeyError as exc:  # ranked before the function changed
                logger.warning("arguments to keep warm do not fit their loader", key=key, error=str(exc))
                continue
            done.append(report)
            spent_s += report.load_s
            pause(report.load_s)
    for report in done:
        if not report.advanced and report.outcome != "held":
            logger.warning("a value was not warmed", key=report.key, outcome=report.outcome, error=report.error)
    return done


def planned() -> list[dict[str, Any]]:
    """Return what the code plans to keep warm, by `loader`, `args` and `key`, and what `peek.describe` tells of it by now.

    Raises `StoreUnavailable`.
    """
    found = []
    for loader, args in _planned():
        if (key := _key_of(loader, args)) is not None:
            found.append({"loader": loader.name, "args": list(args), "key": key, "entry": describe(key)})
    return found


def _candidates(most: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield each key once with what refreshes it, the planned ones first."""
    seen: set[str] = set()
    for loader, args in (*_planned(), *_hottest(most)):
        key = _key_of(loader, args)
        if key is not None and key not in seen:
            seen.add(key)
            yield key, partial(loader.resume, args)


def _key_of(loader: Cached[Any, Any], args: Sequence[Any]) -> str | None:
    try:
        return loader.resumed_key(args)
    except Exception as exc:  # whatever its check raises included
        logger.warning("arguments to keep warm do not fit their loader", loader=loader.name, error=str(exc))
        return None


def _planned() -> Iterator[tuple[Cached[Any, Any], Sequence[Any]]]:
    for loader in loaders().values():
        try:
            for args in loader.warm_plan():
                yield loader, args
        except Exception as exc:
            logger.warning("a plan of what to keep warm failed", loader=loader.name, error=repr(exc))


def _hottest(most: int) -> Iterator[tuple[Cached[Any, Any], Sequence[Any]]]:
    known = loaders()
    try:
        ranked = hot.top(2 * most)
    except StoreUnavailable:
        return
    for found in ranked:
        if found.name in known:  # otherwise another program's, whose workers warm it
            yield known[found.name], found.args


@contextmanager
def _one_loop() -> Iterator[Callable[[Any], Refreshed]]:
    """Give what awaits a report where that is needed: all in one event loop, since its connections to Redis end with it."""
    runner, used = asyncio.Runner(), False

    def finished(report: Any) -> Refreshed:
        nonlocal used
        if not inspect.iscoroutine(report):
            return report  # type: ignore[no-any-return]
        used = True
        return runner.run(report)  # type: ignore[no-any-return]

    try:
        yield finished
    finally:
        if used:
            runner.run(aio.close())
        runner.close()


def _is_near(key: str, horizon_s: float) -> bool:
    """Tell whether a value is missing, dropped by a tag, or soon out of date; that there is nothing needs no warming."""
    try:
        found = describe(key)
    except StoreUnavailable:
        return True  # the refresh tells that it is away
    if found is None or found["found"] == "unreadable" or not found["hold"]:
        return True
    return bool(found["found"] == "value" and found["fresh_s"] <= horizon_s)
