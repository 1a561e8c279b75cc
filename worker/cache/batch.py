"""The protocol for many keys at once: one read, one round for the leases, one load, one fill; then whatever others load."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from worker.cache.bypass import slots
from worker.cache.call import MISSING, Call
from worker.cache.codec import Codec
from worker.cache.effects import Ask, Await, Away, Load, Steps, ask
from worker.cache.entry import Tag
from worker.cache.leases import GRANTED, lease_command, new_lease, versions
from worker.cache.loads import failing, give_back, prepare, stored
from worker.cache.reads import Seen, look, read_commands, serve
from worker.cache.steps import miss
from worker.errors import LoadFailed
from worker.store import Lease, cache, keeper


def fetch_many(calls: dict[Any, Call]) -> Steps:
    """Return the values of many keys, by the caller's names for them; all are under the same tags."""
    for key, call in calls.items():
        call.of_many = [key]
    try:
        seen = yield from _look_at_all(calls)
        values = {key: serve(call, seen[key]) for key, call in calls.items()}
        missed = {key: calls[key] for key, value in values.items() if value is MISSING}
        mine = yield from _take_leases(missed, seen)
        values.update((yield from _load_mine(mine)))
    except Away:
        return (yield from _bypass_many(calls))
    for key, call in missed.items():
        if key not in mine:
            values[key] = yield from miss(call, seen[key])
    return values


def _look_at_all(calls: dict[Any, Call]) -> Generator[Ask, Any, dict[Any, Seen]]:
    asked = {key: read_commands(call) for key, call in calls.items()}
    answers = iter((yield from ask([command for commands in asked.values() for command in commands])))
    return {key: look(calls[key], [next(answers) for _ in commands]) for key, commands in asked.items()}


class _Mine:
    """A key this caller loads."""

    def __init__(self, call: Call, lease: str, tags: tuple[Tag, ...], failures: int) -> None:
        self.call, self.tags, self.failures = call, tags, failures
        self.held = Lease(call.lease_key, lease, call.terms.lease_ms, cache())


def _take_leases(missed: dict[Any, Call], seen: dict[Any, Seen]) -> Generator[Ask, Any, dict[Any, _Mine]]:
    """Take the leases that are free. An entry under further tags is left to be looked at by itself."""
    plain = [key for key in missed if not ((entry := seen[key].entry) and entry.tags)]
    if not plain:
        return {}
    tags = yield from versions(seen[plain[0]].tags)
    leases = {key: new_lease(tags) for key in plain}
    answers = yield from ask([lease_command(missed[key], leases[key], seen[key].id) for key in plain])
    return {
        key: _Mine(missed[key], leases[key], tags, answer[1])
        for key, answer in zip(plain, answers, strict=True)
        if answer[0] == GRANTED
    }


def _load_mine(mine: dict[Any, _Mine]) -> Steps:
    if not mine:
        return {}
    for one in mine.values():
        one.call.counters.misses.inc()
        keeper().add(one.held)
    try:
        return (yield from _load_and_store(mine))
    except GeneratorExit:
        raise
    except BaseException:
        # What was marked as failed is no lease any more, and stays.
        yield from give_back([(one.call, one.held) for one in mine.values()])
        raise
    finally:
        for one in mine.values():
            keeper().remove(one.held)


def _load_and_store(mine: dict[Any, _Mine]) -> Steps:
    first = next(iter(mine.values())).call
    started = time.monotonic()
    try:
        first.counters.loads.inc()
        found = yield Load((list(mine),))
        load_s = time.monotonic() - started
        payloads = {key: _encoded(one.call, found.get(key), load_s) for key, one in mine.items()}
        values = {key: one.call.codec.round_trip(*payloads[key], one.call.key) for key, one in mine.items()}
    except Exception as exc:
        yield from _tell_failure(mine, exc)
        raise
    fills = {key: prepare(one.call, one.held, one.tags, *payloads[key]) for key, one in mine.items()}
    try:
        answers = iter((yield from ask([command for fill in fills.values() for command in fill.commands])))
    except Away:
        answers = iter(())
    for key, fill in fills.items():
        told = [next(answers, None) for _ in fill.commands]
        stored(mine[key].call, fill, told[-1])
    return values


def _encoded(call: Call, value: Any, load_s: float) -> tuple[int, bytes]:
    call.load_s = load_s
    return call.codec.encode(value, call.key)


def _tell_failure(mine: dict[Any, _Mine], exc: Exception) -> Generator[Ask, Any, None]:
    commands = [failing(one.call, one.held.token, one.failures + 1, exc)[0] for one in mine.values()]
    try:
        yield from ask([command for few in commands for command in few])
    except Away:
        return


def _bypass_many(calls: dict[Any, Call]) -> Steps:
    """Load all at once without Redis, when there is a place for it."""
    first = next(iter(calls.values()))
    first.counters.bypasses.inc(len(calls))
    places = slots()
    slot = places.take()
    try:
        if not (yield Await(slot, first.terms.max_wait_s)):
            raise LoadFailed(f"{first.key}: no turn to load within {first.terms.max_wait_s:g} s", key=first.key, retry_after=1.0)
        first.counters.loads.inc()
        found = yield Load((list(calls),))
    finally:
        places.give(slot)
    return {key: _round_trip(call.codec, found.get(key), call.key) for key, call in calls.items()}


def _round_trip(codec: Codec, value: Any, key: str) -> Any:
    return codec.round_trip(*codec.encode(value, key), key)
