"""Doing without the cache Redis: callers of one process share their loads, and the few places for them."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextvars import ContextVar
from functools import cache
from typing import Any

from worker.cache.call import Call
from worker.cache.codec import Undecodable
from worker.cache.effects import Await, Steps
from worker.cache.loads import loaded_value
from worker.cache.signals import Flights, Signal, Slots
from worker.errors import CacheValueError, LoadFailed
from worker.settings import settings

_flights = Flights()
#: Whether this thread or task loads in one of the places: a load that its loader asks for must not wait for another.
_has_slot: ContextVar[bool] = ContextVar("holdfast_bypass_slot", default=False)


@cache
def slots() -> Slots:
    """Return the places for loads, as many as the setting cache_bypass_loads."""
    return Slots(settings().cache_bypass_loads)


def take_slot(call: Call, until: float) -> Generator[Await, Any, Signal | None]:
    """Wait for a place to load, until this time of the monotonic clock; None for a load inside one that has its place.

    `give_slot` must follow. Raises `LoadFailed` when there is none in time.
    """
    if _has_slot.get():
        return None
    slot = slots().take()
    try:
        if not (yield Await(slot, until - time.monotonic())):
            raise LoadFailed(f"{call.key}: no turn to load within {call.terms.max_wait_s:g} s", key=call.key, retry_after=1.0)
    except BaseException:
        slots().give(slot)
        raise
    _has_slot.set(True)
    return slot


def give_slot(slot: Signal | None) -> None:
    """Give a place back; None for none."""
    if slot is not None:
        _has_slot.set(False)
        slots().give(slot)


def bypass_load(call: Call) -> Steps:
    """Load without Redis: of one key one load at a time, of all a few, and none shared that began before the caller asked."""
    call.counters.bypasses.inc()
    flight, leads, before = _flights.board(call.key)
    until = time.monotonic() + call.terms.max_wait_s
    if not leads:
        yield Await(flight, until - time.monotonic())
        if not isinstance(flight.value, BaseException) or isinstance(flight.value, Exception):
            return _landed(call, flight)
        return (yield from bypass_load(call))  # whoever was to load it was interrupted
    slot: Signal | None = None
    outcome: Any = None
    try:
        if before is not None:
            yield Await(before, until - time.monotonic())
        slot = yield from take_slot(call, until)
        _flights.begin(call.key, flight)
        call.counters.loads.inc()
        value = yield from loaded_value(call)
        flags, payload = outcome = call.codec.encode(value, call.key)
        return call.codec.round_trip(flags, payload, value, call.key)
    except BaseException as exc:
        outcome = exc
        if isinstance(exc, Exception) and not isinstance(exc, LoadFailed):
            call.counters.failed("load")
        raise
    finally:
        give_slot(slot)
        _flights.land(call.key, flight, outcome)


def _landed(call: Call, flight: Signal) -> Any:
    if not flight.done:
        raise LoadFailed(f"{call.key}: no load within {call.terms.max_wait_s:g} s", key=call.key, retry_after=1.0)
    if isinstance(flight.value, BaseException):
        error = f"{type(flight.value).__name__}: {flight.value}"
        raise LoadFailed(f"{call.key}: the load failed ({error})", key=call.key) from flight.value
    try:
        return call.codec.decode(*flight.value)
    except Undecodable as exc:
        raise CacheValueError(f"{call.key}: {exc}") from exc


def _after_fork() -> None:
    global _flights
    _flights = Flights()
    slots.cache_clear()


os.register_at_fork(after_in_child=_after_fork)
