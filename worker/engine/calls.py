"""A job as any door describes it: read, checked against the task it names, and accepted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from celery import Celery

from worker.clock import parse_duration, parse_moment, uuid7
from worker.engine.amqp import encoded_alone
from worker.engine.options import (
    FARTHEST_S,
    LONGEST,
    check_metadata,
    check_options,
    check_url,
    checked_priority,
    is_seconds,
    is_storable,
    known_queue,
)  # fmt: skip
from worker.engine.schemas import check_arguments, find_task
from worker.errors import InvalidJob, UnknownTask
from worker.ledger.accept import accept
from worker.ledger.message import DOOR, NewJob
from worker.wording import did_you_mean

#: Longest text kept of a call's arguments for people to read, as Celery's own.
REPR = 1024


@dataclass(slots=True)
class Call:
    """What a caller wants done. Times are a moment, or seconds from Postgres's now."""

    task: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    queue: str | None = None
    #: 0 goes first, 9 last; 5 when none is given.
    priority: int | None = None
    delay_s: float | None = None
    at: datetime | None = None
    expires_s: float | None = None
    expires_at: datetime | None = None
    max_attempts: int | None = None
    #: At most one active job of the task has this text; for `unique_for_s` at most, where that is given.
    unique: str | None = None
    unique_for_s: float | None = None
    idempotency_key: str | None = None
    #: On whose behalf; idempotency keys are the caller's own.
    caller: str | None = None
    #: Who is told of the job's end.
    callback_url: str | None = None
    #: Whatever the caller wants to find again on the job: a JSON object of at most 4 kB.
    metadata: dict[str, Any] | None = None
    #: The id of the job, where the door derives one; a new one otherwise.
    id: str | None = None
    #: The door it came in by, for the switches `door:<name>`.
    door: str | None = None


# ---- reading what a door was given


def read_call(values: Mapping[str, Any]) -> Call:
    """Return the call that values by name describe: those of `Call`, and durations as `delay` and `expires`.

    A duration is a number of seconds or a text such as `90s`; `expires` may be a moment, too. Raises `InvalidJob` with the
    `field` that is wrong.
    """
    if not isinstance(values, Mapping):
        raise _wrong("", f"{values!r:.60} is not an object of fields by name")
    for name in values:
        if name not in _READERS:
            raise _wrong(str(name)[:LONGEST], f"there is no such field{did_you_mean(str(name)[:LONGEST], _READERS)}")
    if values.get("task") is None:
        raise _wrong("task", "it is missing")
    found: dict[str, Any] = {}
    for name, value in values.items():
        if value is not None:
            into, read = _READERS[name]
            told = read(name, value)
            found["expires_at" if name == "expires" and isinstance(told, datetime) else into] = told
    return Call(**found)


def _wrong(field: str, why: str) -> InvalidJob:
    return InvalidJob(f"{field}: {why}" if field else why, field=field)


def _text(name: str, value: Any) -> str:
    if not is_storable(value):
        raise _wrong(name, f"{value!r:.60} is not a text of 1 to {LONGEST} characters without U+0000")
    return str(value)


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _wrong(name, f"{value!r:.60} is not a list")
    return list(value)


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(name, f"{value!r:.60} is not an object")
    return value


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise _wrong(name, f"{value!r:.60} is not a whole number from {least} to {most}")
        return value

    return read


def _seconds(name: str, value: Any) -> float:
    try:
        found = parse_duration(value).total_seconds() if isinstance(value, str) else value
    except ValueError as exc:
        raise _wrong(name, str(exc)) from exc
    except OverflowError:
        found = FARTHEST_S + 1
    if not is_seconds(found) or not 0 <= found <= FARTHEST_S:
        raise _wrong(name, f"{value!r:.60} is not a duration from 0 to a hundred years, such as 90 or \"90s\"")
    return float(found)


def _moment(name: str, value: Any) -> datetime:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    try:
        return parse_moment(value)
    except (ValueError, TypeError, AttributeError) as exc:
        why = f"{value!r:.60} is not a moment such as 2030-01-31T08:00:00+01:00"
        raise _wrong(name, str(exc) if isinstance(value, str) else why) from exc


def _duration_or_moment(name: str, value: Any) -> float | datetime:
    if isinstance(value, str) and "-" in value:
        return _moment(name, value)
    return value if isinstance(value, datetime) else _seconds(name, value)


def _checked(check: Callable[[str, Any], None]) -> Callable[[str, Any], Any]:
    def read(name: str, value: Any) -> Any:
        check(name, value)
        return value

    return read


_Reader = Callable[[str, Any], Any]
#: How each field of a door is read, and where it goes.
_READERS: dict[str, tuple[str, _Reader]] = {
    "task": ("task", _text), "args": ("args", _list), "kwargs": ("kwargs", _object), "queue": ("queue", _text),
    "priority": ("priority", _whole(0, 9)), "delay": ("delay_s", _seconds), "at": ("at", _moment),
    "expires": ("expires_s", _duration_or_moment), "max_attempts": ("max_attempts", _whole(1, 1_000_000)),
    "unique": ("unique", _text), "unique_for": ("unique_for_s", _seconds),
    "idempotency_key": ("idempotency_key", _text), "caller": ("caller", _text),
    "callback_url": ("callback_url", _checked(check_url)), "metadata": ("metadata", _checked(check_metadata)),
}  # fmt: skip
#: The fields of a door, by the name each is given under.
FIELDS = tuple(_READERS)


# ---- making a job of it


class _Form(NamedTuple):
    """What the calls of one task in one queue have in common."""

    task: Any
    name: str
    max_attempts: int | None
    queue: str
    headers: dict[str, Any]
    options: dict[str, Any]


_forms: WeakKeyDictionary[Any, dict[str | None, _Form]] = WeakKeyDictionary()


def form_of(app: Celery, task: Any, queue: str | None = None) -> _Form:
    """Return what the calls of a task have in common: where they go and what their messages say. Raises `UnknownQueue`."""
    known = _forms.get(task)
    if known is None or queue not in known:
        task = app.tasks[task.name]  # itself: the proxy that `@app.task` leaves looks it up for each attribute
        known = _forms.setdefault(task, {})
        options = {name: value for name, value in task._get_exec_options().items() if value is not None}
        wanted = queue or options.get("queue")
        with known_queue(app, wanted):
            routed = app.amqp.router.route({"queue": wanted} if wanted else {}, task.name)
        first = app.amqp.create_task_message("", task.name, (), {}, ignore_result=task.ignore_result,
                                             time_limit=task.time_limit, soft_time_limit=task.soft_time_limit)  # fmt: skip
        known[queue] = _Form(task, task.name, task.max_attempts, routed["queue"].name, first.headers, options)
    return known[queue]


def job_of(
    form: _Form, args: Sequence[Any], kwargs: Mapping[str, Any], *, where: str = "", id: str | None = None,
    door: str | None = None, max_attempts: int | None = None, **columns: Any,
) -> NewJob:  # fmt: skip
    """Return the job that a call of this form makes. Raises `InvalidJob` that names the task and `where`."""
    job_id = id or uuid7()
    args_repr = repr(tuple(args))[:REPR] if args else "()"
    kwargs_repr = repr(kwargs)[:REPR] if kwargs else "{}"
    headers = {**form.headers, "id": job_id, "root_id": job_id, "argsrepr": args_repr, "kwargsrepr": kwargs_repr}
    if door is not None:
        headers[DOOR] = door
    message = {
        "headers": headers, "properties": {"correlation_id": job_id, "reply_to": ""},
        "body": encoded_alone(f"{form.name}{where}", args, kwargs),
        "content-type": "application/json", "content-encoding": "utf-8",
    }  # fmt: skip
    return NewJob(
        job_id, form.name, form.queue, message, args=args_repr, kwargs=kwargs_repr, root_id=job_id, fresh=id is None,
        max_attempts=form.max_attempts if max_attempts is None else max_attempts, **columns,
    )  # fmt: skip


def new_job(app: Celery, call: Call) -> NewJob:
    """Return the job a call asks for, checked as far as that goes without a server.

    Raises `InvalidJob` or one of its kinds, with `code` and `field`.
    """
    task = find_task(app, call.task)
    if not task.durable or task.name.startswith("celery."):
        raise UnknownTask(f"task {call.task!r} makes no jobs; call it where it is imported", field="task")
    if call.delay_s and call.at:
        raise _wrong("at", "give either a delay or a moment, not both")
    if call.unique_for_s is not None and call.unique is None:
        raise _wrong("unique_for", "it goes with `unique`")
    check_arguments(task, call.args, call.kwargs)
    check_options({
        "caller": call.caller, "idempotency_key": call.idempotency_key, "task_id": call.id, "callback_url": call.callback_url,
        "metadata": call.metadata,
    })  # fmt: skip
    form = form_of(app, task, call.queue)
    own = form.options
    expires_s = call.expires_s if call.expires_at is None else None
    if expires_s is None and call.expires_at is None and is_seconds(own.get("expires")):
        expires_s = float(own["expires"])
    return job_of(
        form, call.args, call.kwargs, id=call.id, door=call.door,
        priority=checked_priority(own.get("priority") if call.priority is None else call.priority),
        available_at=call.at, delay_s=call.delay_s or 0.0, expires_at=call.expires_at, expires_s=expires_s,
        max_attempts=call.max_attempts, caller=call.caller, idempotency_key=call.idempotency_key,
        callback_url=call.callback_url, metadata=call.metadata, **_uniqueness(task, call),
    )  # fmt: skip


def _uniqueness(task: Any, call: Call) -> dict[str, Any]:
    if call.unique is not None:
        return {"unique_key": task.unique_key_of(call.unique), "unique_for_s": call.unique_for_s}
    if task.unique_for is not None:
        return {"unique_key": task.unique_key(call.args, call.kwargs), "unique_for_s": float(task.unique_for)}
    return {}


def accept_calls(app: Celery, calls: Sequence[Call]) -> list[str]:
    """Make the calls durable, all or none, and return the ids under which their jobs are known, in order.

    Raises as `new_job` and `worker.ledger.accept`.
    """
    return accept([new_job(app, call) for call in calls])
