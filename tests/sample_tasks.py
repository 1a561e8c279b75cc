"""Tasks that tests enqueue: for in-process use imported, for workers named in `HOLDFAST_INCLUDE`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from celery import group, signals
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from pydantic import BaseModel
from sqlalchemy import text

from worker.app import app
from worker.engine.run import current
from worker.store import coordination, keys

_RAN = text("INSERT INTO ran (job_id, label) VALUES (:job, :label)")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def echo(*args: Any, **kwargs: Any) -> Any:
    return [list(args), kwargs]


@app.task
def noop() -> None:
    pass


@app.task
def fail(why: str = "as told") -> None:
    raise ValueError(why)


@app.task(ignore_result=True)
def silent(x: int) -> int:
    return x


@app.task(durable=False)
def plain(x: int) -> int:
    return x


@app.task
def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@app.task(bind=True)
def mark(self: Any, label: str) -> str:
    """Leave a trace that commits with the job's success."""
    self.session.execute(_RAN, {"job": self.request.id, "label": label})
    return label


@app.task(bind=True)
def mark_then_fail(self: Any, label: str) -> None:
    self.session.execute(_RAN, {"job": self.request.id, "label": label})
    raise ValueError(label)


@app.task(bind=True, max_retries=3)
def mark_each_try(self: Any, label: str, tries: int) -> int:
    """Leave a trace in each of so many tries; only that of the last may stay."""
    self.session.execute(_RAN, {"job": self.request.id, "label": f"{label} {self.request.retries}"})
    if self.request.retries < tries:
        raise self.retry(countdown=0)
    return int(self.request.retries)


@app.task(bind=True)
def once_then_retry(self: Any, label: str) -> bool:
    """Record an effect, fail once, and tell whether it was still new the second time."""
    new = self.once(label)
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return bool(new and not self.once(label))


@app.task(bind=True, max_retries=2)
def retry_for_ever(self: Any) -> None:
    raise self.retry(exc=ValueError("never"), countdown=0)


@app.task(bind=True, autoretry_for=(KeyError,), retry_backoff=False, default_retry_delay=0, max_retries=5)
def autoretry(self: Any, failures: int) -> int:
    if self.request.retries < failures:
        raise KeyError("not yet")
    return int(self.request.retries)


@app.task(bind=True, max_attempts=2)
def two_attempts(self: Any) -> None:
    raise self.retry(countdown=0, max_retries=None)


@app.task(bind=True)
def become_task(self: Any, x: int) -> None:
    raise self.replace(add.si(x, 100))


@app.task(bind=True)
def become_chain(self: Any, x: int) -> None:
    raise self.replace(add.si(x, 100) | add.s(5))


@app.task(bind=True)
def become_group(self: Any, x: int) -> None:
    raise self.replace(group(add.si(x, n) for n in range(3)))


@app.task(bind=True)
def become_nothing(self: Any) -> None:
    raise self.replace(group())


@app.task(bind=True)
def spawn(self: Any, n: int) -> list[str]:
    return [add.delay(i, i).id for i in range(n)]


@app.task(unique_for=60)
def unique(x: int, note: str = "") -> int:
    return x


@app.task(unique_for=60, unique_on=["x"])
def unique_on_x(x: int, note: str = "") -> int:
    return x


@app.task(unique_for=60, unique_on=lambda x, note="": str(x % 2))
def unique_on_parity(x: int, note: str = "") -> int:
    return x


@app.task(bind=True, unique_for=60)
def unique_retry(self: Any, x: int) -> int:
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return x


@app.task(bind=True)
def step(self: Any, total: int, gate: str) -> int:
    """Tell its progress and wait until the file `gate` is there."""
    self.progress(1, total, "first step")
    _wait_for(gate)
    return total


@app.task(bind=True)
def until_cancelled(self: Any, gate: str) -> str:
    """Open `gate`, then go on until somebody asks it to stop."""
    Path(gate).touch()
    deadline = time.monotonic() + 20
    while not self.cancelled and time.monotonic() < deadline:
        time.sleep(0.05)
    return "stopped" if self.cancelled else "not asked"


@app.task
def wait_for(gate: str, started: str = "", log: str = "") -> str:
    """Open `started`, wait until `gate` is there; note each run as a line of `log`."""
    if log:
        _append(log, str(os.getpid()))
    if started:
        Path(started).touch()
    _wait_for(gate)
    return "done"


@app.task(bind=True)
def note_run(self: Any, log: str, label: str = "") -> str:
    """Note the run in a file, outside of any transaction."""
    _append(log, label or self.request.id)
    return label


@app.task
def note_error(request: Any, exc: Any, traceback: Any, log: str) -> None:
    _append(log, f"{request.id} {exc!r}")


@app.task
def note_failed_id(failed_id: str, log: str) -> None:
    """An error callback of the old kind: it takes the id alone."""
    _append(log, failed_id)


@app.task(soft_time_limit=1, time_limit=20)
def soft_limited() -> str:
    try:
        time.sleep(20)
    except SoftTimeLimitExceeded:
        return "noticed"
    return "not limited"


@app.task(time_limit=1)
def hard_limited() -> None:
    time.sleep(20)


@app.task(bind=True)
def reject(self: Any, log: str, requeue: bool) -> str:
    _append(log, "run")
    if requeue and len(Path(log).read_text().splitlines()) > 1:
        return "taken the second time"
    raise Reject("not now", requeue=requeue)


@app.task(bind=True)
def ignore(self: Any) -> None:
    raise Ignore("none of my business")


@app.task(bind=True)
def own_state(self: Any) -> None:
    """Set the job's final state by hand, as Celery's docs show."""
    self.update_state(state="FAILURE", meta={"exc_type": "ValueError", "exc_message": ["by hand"], "exc_module": "builtins"})
    raise Ignore()


@app.task
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def leave() -> None:
    sys.exit(3)


class Odd(Exception):
    """An error that neither JSON nor pickle can carry."""

    def __init__(self, lock: Any) -> None:
        super().__init__(lock)

    def __str__(self) -> str:
        return "cannot be written"


@app.task
def fail_oddly() -> None:
    raise Odd(threading.Lock())


@app.task
def pid() -> int:
    return os.getpid()


@app.task(bind=True, track_started=True)
def tracked(self: Any, gate: str) -> str:
    _wait_for(gate)
    return "done"


@app.task(bind=True)
def about_me(self: Any) -> dict[str, Any]:
    request = self.request
    return {"id": request.id, "root": request.root_id, "parent": request.parent_id, "headers": request.get("x-test"),
            "retries": request.retries, "delivered": bool(request.delivery_info), "hostname": request.hostname}  # fmt: skip


@app.task(bind=True)
def unwritable(self: Any) -> object:
    self.session.execute(_RAN, {"job": self.request.id, "label": "unwritable"})
    return object()


@app.task
def signalled(log: str) -> None:
    _append(log, "run")


@signals.task_prerun.connect
def _on_prerun(task: Any, args: Any, **_: Any) -> None:
    if task.name == signalled.name:
        _append(args[0], "prerun")


@signals.task_postrun.connect
def _on_postrun(task: Any, args: Any, state: str, **_: Any) -> None:
    if task.name == signalled.name:
        _append(args[0], f"postrun {state}")


class Order(BaseModel):
    number: int
    note: str = "none"


@app.task(pydantic=True)
def typed(order: Order) -> Order:
    return Order(number=order.number + 1, note=order.note)


class Hooked(app.Task):  # type: ignore[name-defined,misc]
    """A task class with all of Celery's hooks; each notes its name in the file that is the first argument."""

    abstract = True

    def _note(self, name: str, args: Any) -> None:
        _append(args[0], name)

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self._note("before_start", args)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self._note("on_success", args)

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self._note("on_retry", args)

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self._note("on_failure", args)

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self._note(f"after_return {status}", args)


@app.task(base=Hooked, bind=True)
def hooked(self: Any, log: str, how: str = "succeed", gate: str = "") -> str:
    self._note("run", [log])
    if gate:
        _wait_for(gate)
    if how == "fail":
        raise ValueError("as told")
    if how == "retry" and self.request.retries == 0:
        raise self.retry(countdown=0)
    return how


def _append(path: str, line: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{line}\n")


def _wait_for(path: str, timeout: float = 40.0) -> None:
    deadline = time.monotonic() + timeout
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} did not come")
        time.sleep(0.02)


@app.task(limits=["tenant:{kwargs[tenant]} 20/second"])
def metered(tenant: str, number: int = 0) -> int:
    return number


@app.task(bind=True, limits=["again:{args[0]} 3/hour"])
def limited_again(self: Any, name: str, other: str) -> str:
    """Go on once under the name of another."""
    if self.request.retries == 0:
        raise self.retry(args=(other, other), countdown=0)
    return name


@app.task(limits=["crowd:{args[0]} 2 concurrent lease 2s"])
def crowd(name: str, seconds: float) -> list[float]:
    """Work in a crowd of two at most; tell from when to when."""
    start = time.time()
    time.sleep(seconds)
    return [start, time.time()]


@app.task(bind=True, limits=["crowd:{args[0]} 2 concurrent lease 2s"], max_retries=1)
def crowd_again(self: Any, name: str, seconds: float) -> str:
    """Work in a crowd and fail once."""
    time.sleep(seconds)
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return name


@app.task(limits=["narrow:{args[0]} 2 concurrent lease 2s"])
def narrow(name: str) -> str:
    return name


@app.task(bind=True)
def lock_and_token(self: Any) -> list[str]:
    """Return the token in the job's lock, and that of its claim."""
    with coordination().use() as client:
        held = client.get(keys.job_lock(self.request.id))
    run = current()
    assert run is not None
    return [bytes(held).decode() if held else "", run.claim.token.hex]  # type: ignore[arg-type]
