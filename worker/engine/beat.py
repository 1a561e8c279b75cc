"""Beat: schedules live in Postgres, and a tick's job id is derived from schedule and tick, so any number of beats is safe."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid5

import psycopg
from celery.beat import BeatLazyFunc, ScheduleEntry, Scheduler
from celery.schedules import BaseSchedule, crontab, schedule
from kombu.utils import json

from worker import faults
from worker.cache import outbox
from worker.clock import uuid7
from worker.db import is_away, statement
from worker.engine.amqp import Batch
from worker.engine.application import Holdfast
from worker.errors import HoldfastError, InvalidSchedule, LedgerUnavailable, StoreUnavailable
from worker.ledger import schedules
from worker.ledger.accept import accept_rows, scope
from worker.ledger.message import DOOR, NewJob
from worker.ledger.publish import Sendable, epochs_for, publish
from worker.ledger.schedules import Spec, Turn
from worker.ledger.ticks import Crontab
from worker.telemetry import OUTAGES, log

logger = log(__name__)

#: The namespace of the ids of scheduled jobs; a new one would run each tick again that both an old and a new beat see.
_NAMESPACE = UUID("8e9bd3a5-6b0a-4c1c-9d53-3d2f6a8f1b70")
#: Seconds within which a beat sees what people have changed.
_LOOK_S = 1.0
#: What an entry of `beat_schedule` may say: what Celery knows, and what only a row can.
_KEYS = ("task", "schedule", "args", "kwargs", "options", "relative", "catch_up", "timezone", "enabled")
#: Seconds between two runs that warm the cache: each refreshes what would go out of date before the next.
WARM_EVERY_S = 30.0
#: What keeps the ledger in order, whatever else is declared. A tick that no worker got to before the next one is let go.
MAINTENANCE = {
    "maintenance.upkeep": {"task": "maintenance.upkeep", "schedule": crontab(minute="7"), "options": {"expires": 3600}},
    "maintenance.audit": {"task": "maintenance.audit", "schedule": crontab(minute="*/5"), "options": {"expires": 300}},
    "boards.day": {"task": "boards.refresh", "schedule": 300.0, "args": [["hour", "day"]], "options": {"expires": 300}},
    "boards.week": {"task": "boards.refresh", "schedule": 3600.0, "args": [["week"]], "options": {"expires": 3600}},
    "cache.warm": {"task": "cache.warm", "schedule": WARM_EVERY_S, "options": {"expires": WARM_EVERY_S}},
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: What was last said of a schedule that cannot be sent, so that it is said once and not every second.
_troubles: dict[str, str] = {}


def job_id(name: str, tick: datetime) -> str:
    """Return the id of the job that a schedule's tick makes, whichever beat makes it."""
    return str(uuid5(_NAMESPACE, f"{name}:{tick.astimezone(UTC).isoformat()}"))


@dataclass
class _Taken:
    """Accepts jobs into the transaction in which their schedules move on."""

    conn: psycopg.Connection[Any]
    epochs: dict[str, str | None]
    sendables: list[Sendable] = field(default_factory=list)

    def accept(self, jobs: Sequence[NewJob]) -> list[str]:
        """Write the rows; they are published after the commit."""
        for queue in {job.queue for job in jobs} - self.epochs.keys():
            (self.epochs[queue],) = epochs_for([queue])
        written = accept_rows(self.conn, jobs, [self.epochs[job.queue] for job in jobs])
        self.sendables += [sendable for _, sendable in written if sendable]
        return [known for known, _ in written]


@dataclass
class _Round:
    """One look at all schedules."""

    app: Holdfast
    #: The moment it is at; None for Postgres's own.
    now: datetime | None
    made: int = 0
    #: Whether a schedule has ticks left to make up for.
    more: bool = False

    def run(self) -> _Round:
        beyond: str | None = ""
        while beyond is not None:
            beyond = self._step(beyond)
        return self

    def _step(self, beyond: str) -> str | None:
        """Run the schedules after this name that one transaction takes; return the last one's name, None at the end."""
        sendables: list[Sendable] = []
        epochs: dict[str, str | None] = {}
        with statement() as conn, outbox.transaction(conn) as changes:
            self.now = schedules.clock(conn, self.now)
            rows = schedules.due(conn, self.now, beyond)
            for row in rows:
                sendables += self._try(conn, row, epochs)
            if rows:
                schedules.forget_list(changes)
        faults.point(faults.AFTER_COMMIT)
        publish(sendables)
        return rows[-1]["name"] if rows else None

    def _try(self, conn: psycopg.Connection[Any], row: dict[str, Any], epochs: dict[str, str | None]) -> list[Sendable]:
        """Run one schedule. One that cannot be sent holds up no other; it stays due, and its ticks wait until it is mended."""
        assert self.now is not None
        taken = _Taken(conn, epochs)
        try:
            with conn.transaction(), scope(taken):
                turn = schedules.reckon(row, self.now)
                self._send(turn)
                schedules.advance(conn, turn)
        except Exception as exc:
            if isinstance(exc, LedgerUnavailable) or is_away(exc):
                raise
            _complain(row["name"], exc)
            return []
        _troubles.pop(row["name"], None)
        self.made += len(turn.ticks)
        self.more = self.more or turn.more
        return taken.sendables

    def _send(self, turn: Turn) -> None:
        with Batch(lambda: self.app.producer_pool) as batch:
            for tick in turn.ticks:
                _send(self.app, turn.row, job_id(turn.row["name"], tick), tick, producer=batch)
        if turn.ticks:
            logger.info("a schedule ticked", schedule=turn.row["name"], task=turn.row["task"], jobs=len(turn.ticks),
                        tick=turn.ticks[-1].isoformat())  # fmt: skip


def _send(app: Holdfast, row: dict[str, Any], task_id: str, tick: datetime | None, **options: Any) -> Any:
    """Enqueue a schedule's task as Celery's beat would: by the task's own options where this process knows the task."""
    given = dict(row["options"])
    told = {DOOR: "beat", "celery_beat_task": True, "beat_schedule": row["name"], "beat_tick": tick and tick.isoformat()}
    headers = {**(given.pop("headers", None) or {}), **told}
    task = app.tasks.get(row["task"])
    send = task.apply_async if task is not None else partial(app.send_task, row["task"])
    return send(tuple(row["args"]), row["kwargs"], **given, task_id=task_id, headers=headers, durable=True, **options)


def _complain(name: str, exc: Exception) -> None:
    text = f"{type(exc).__name__}: {exc}"
    if _troubles.get(name) != text:
        _troubles[name] = text
        logger.error("a schedule cannot be sent; it stays due until it is mended", schedule=name, error=text)


def tick(app: Holdfast, now: datetime | None = None) -> int:
    """Run one round: make the jobs of every schedule that is due, and return how many.

    `now` stands for the clock of Postgres, for tests in simulated time. Raises `LedgerUnavailable`; nothing is lost by it.

    **Guarantee:** the jobs of a tick and the schedule's moving on commit together, and their ids are derived from the tick:
    however many beats run, and whenever they die, each tick makes its job once.
    """
    return _Round(app, now).run().made


def fire(app: Holdfast, name: str) -> str:
    """Run a schedule's task now, also of a paused one, and return the job's id; its ticks are not touched.

    Raises `ScheduleNotFound`, and as `send_task`.
    """
    with statement() as conn:
        row = schedules.get(conn, name)
    return str(_send(app, row, uuid7(), None).id)


def declare(app: Holdfast) -> None:
    """Write the static schedules of the code into their rows. Raises `InvalidSchedule`, `LedgerUnavailable`."""
    specs = declared(app)
    with statement() as conn:
        for name in schedules.declare(conn, specs):
            logger.error("a schedule of the code is not used: people have added one of the same name", schedule=name)


class LedgerScheduler(Scheduler):  # type: ignore[misc]
    """Celery's scheduler over the rows: `celery -A worker.app beat`, with no file of its own.

    **Guarantee:** it outlives any outage of Postgres or Redis, and makes up for the ticks it missed as each schedule says.
    """

    max_interval = _LOOK_S
    _undeclared = False
    _away = False

    def setup_schedule(self) -> None:
        """Check what the code declares; it is written with the first round that finds Postgres."""
        try:
            declared(self.app)
        except HoldfastError as exc:
            print(f"holdfast: {exc}", file=sys.stderr)
            raise SystemExit(1) from exc
        self._undeclared = True

    def tick(self, *_: Any, **__: Any) -> float:
        """Run one round and return the seconds to sleep, one at most. Never raises: beat must outlive what it waits for."""
        try:
            seconds = self._tick()
        except (LedgerUnavailable, StoreUnavailable) as exc:
            OUTAGES.labels("beat", "waits for postgres" if isinstance(exc, LedgerUnavailable) else "waits for redis").inc()
            if not self._away:
                logger.warning("beat waits; what falls due meanwhile is made up for", error=str(exc))
            self._away = True
            return _LOOK_S
        except Exception:
            OUTAGES.labels("beat", "tried again").inc()
            logger.exception("a round of beat failed and is tried again")
            return _LOOK_S
        if self._away:
            logger.info("beat goes on")
        self._away = False
        return seconds

    def _tick(self) -> float:
        if self._undeclared:
            declare(self.app)
            self._undeclared = False
        done = _Round(self.app, None).run()
        if done.more:
            return 0.0
        assert done.now is not None
        with statement() as conn:
            left = schedules.seconds_to_next(conn, done.now)
        return max(0.0, min(_LOOK_S, self.max_interval, _LOOK_S if left is None else left))

    @property
    def info(self) -> str:
        """Where the schedules are, for beat's banner."""
        return "    . db -> postgres (schedules)"


# ---- what the code declares


def declared(app: Holdfast) -> list[Spec]:
    """Return ours and the entries of `app.conf.beat_schedule` as schedules. Raises `InvalidSchedule` that names the wrong entry.

    Beside Celery's keys an entry may say `catch_up`, `timezone` and `enabled`.
    """
    return [_spec(app, str(name), entry) for name, entry in {**MAINTENANCE, **(app.conf.beat_schedule or {})}.items()]


def _spec(app: Holdfast, name: str, entry: Any) -> Spec:
    try:
        if isinstance(entry, ScheduleEntry):
            entry = {key: getattr(entry, key) for key in ("task", "schedule", "args", "kwargs", "options")}
        if not isinstance(entry, Mapping):
            raise InvalidSchedule(f"it is {type(entry).__name__}, not a dict with at least `task` and `schedule`")
        if unknown := sorted(set(entry) - set(_KEYS)):
            raise InvalidSchedule(f"{unknown[0]!r} is not one of {', '.join(_KEYS)}")
        spec = Spec(
            name=name, task=entry.get("task"),  # type: ignore[arg-type]
            args=_plain("args", entry.get("args") or ()), kwargs=_plain("kwargs", entry.get("kwargs") or {}),
            options=_plain("options", entry.get("options") or {}), enabled=entry.get("enabled", True),
            catch_up=entry.get("catch_up", "once"),
            **_timing(app, entry),
        )  # fmt: skip
        spec.check()
    except InvalidSchedule as exc:
        raise InvalidSchedule(f"beat_schedule entry {name!r}: {exc}", **{**exc.__dict__, "entry": name}) from exc
    return spec


def _plain(name: str, value: Any) -> Any:
    """Return a value as JSON keeps it: moments, UUIDs and the like in Celery's own marking, which workers read back."""
    if isinstance(value, list | tuple | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            if isinstance(item, BeatLazyFunc):
                raise InvalidSchedule(f"{name}: a BeatLazyFunc cannot be kept in a row; let the task work it out when it runs")
    try:
        return json.loads(json.dumps(value), object_hook=None)
    except (TypeError, ValueError) as exc:
        raise InvalidSchedule(f"{name}: cannot be written as JSON: {exc}") from exc


def _timing(app: Holdfast, entry: Mapping[str, Any]) -> dict[str, Any]:
    value: Any = entry.get("schedule")
    if isinstance(value, timedelta):
        return _interval(value.total_seconds(), entry)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _interval(value, entry)
    if isinstance(value, BaseSchedule) and value.nowfun is not None:
        raise InvalidSchedule("schedule: `nowfun` is not used, the clock of Postgres decides; say a `timezone` instead")
    if type(value) is schedule:
        return _interval(value.run_every.total_seconds(), {"relative": value.relative, **entry})
    # A subclass may tick as it likes; one that only brings its zone along is django-celery-beat's.
    if isinstance(value, crontab) and (type(value) is crontab or "tz" in vars(value)):
        return {"crontab": _fields(value), "timezone": entry.get("timezone") or str(vars(value).get("tz") or app.timezone)}
    raise InvalidSchedule(f"schedule: {value!r} is not a crontab, a timedelta or a number of seconds")


def _interval(every_s: float, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an interval; a `relative` one is counted from a full day, so that its ticks are round times."""
    return {"every_s": every_s, "anchor": _EPOCH if entry.get("relative") else None, "timezone": entry.get("timezone") or "UTC"}


def _fields(value: Any) -> str:
    """Return a crontab object's five fields; one that was not given as text we read the same way, by its numbers."""
    parts = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
    texts = ["".join(str(getattr(value, f"_orig_{part}")).split()) for part in parts]
    numbers = [tuple(sorted(getattr(value, part))) for part in parts]
    for index in range(len(parts)):
        trial = ["*"] * len(parts)
        trial[index] = texts[index]
        try:
            parsed = Crontab.parse(" ".join(trial))
            read = (parsed.minutes, parsed.hours, parsed.days, parsed.months, parsed.weekdays)[index]
        except InvalidSchedule:
            read = ()
        if read != numbers[index]:
            texts[index] = ",".join(map(str, numbers[index]))
    return " ".join(texts)
