"""The protocol for many keys at once: one read, one round for the leases, one load, one fill; then whatever others load."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from worker.cache.bypass import give_slot, take_slot
from worker.cache.call import MISSING, Call
from worker.cache.effects import Ask, Away, Load, Steps, ask
from worker.cache.entry import Tag
from worker.cache.leases import GRANTED, lease_command, new_lease, versions
from worker.cache.loads import failing, give_back, mapping, prepare, stored
from worker.cache.reads import Seen, look, read_commands, serve
from worker.cache.steps import miss
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
        found = mapping(first, (yield Load((list(mine),))))
    except Exception as exc:
        yield from _tell_failures(mine, dict.fromkeys(mine, exc))
        raise
    load_s = time.monotonic() - started
    encoded: dict[Any, tuple[int, bytes]] = {}
    values: dict[Any, Any] = {}
    wrong: dict[Any, Exception] = {}
    for key, one in mine.items():
        try:
            one.call.load_s = load_s
            encoded[key], values[key] = _round_trip(one.call, found.get(key))
        except Exception as exc:  # of this key alone: the others are stored
            wrong[key] = exc
    yield from _store({key: mine[key] for key in encoded}, encoded)
    if wrong:
        yield from _tell_failures(mine, wrong)
        raise next(iter(wrong.values()))
    return values


def _store(mine: dict[Any, _Mine], encoded: dict[Any, tuple[int, bytes]]) -> Generator[Ask, Any, None]:
    fills = {key: prepare(one.call, one.held, one.tags, *encoded[key]) for key, one in mine.items()}
    try:
        answers = iter((yield from ask([command for fill in fills.values() for command in fill.commands])))
    except Away:
        answers = iter(())
    for key, fill in fills.items():
        told = [next(answers, None) for _ in fill.commands]
        stored(mine[key].call, fill, told[-1])


def _tell_failures(mine: dict[Any, _Mine], wrong: dict[Any, Exception]) -> Generator[Ask, Any, None]:
    commands = [
        failing(mine[key].call, mine[key].held.token, mine[key].failures + 1, exc)[0] for key, exc in wrong.items()
    ]
    try:
        yield from ask([command for few in commands for command in few])
    except Away:
        return


def _bypass_many(calls: dict[Any, Call]) -> Steps:
    """Load all at once without Redis, when there is a place for it."""
    first = next(iter(calls.values()))
    first.counters.bypasses.inc(len(calls))
    slot = yield from take_slot(first, time.monotonic() + first.terms.max_wait_s)
    try:
        first.counters.loads.inc()
        found = mapping(first, (yield Load((list(calls),))))
    finally:
        give_slot(slot)
    return {key: _round_trip(call, found.get(key))[1] for key, call in calls.items()}


def _round_trip(call: Call, value: Any) -> tuple[tuple[int, bytes], Any]:
    """Return a value encoded, and as a reader will get it."""
    encoded = call.codec.encode(value, call.key)
    return encoded, call.codec.round_trip(*encoded, value, call.key)
