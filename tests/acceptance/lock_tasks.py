"""Tasks that hold a lock while they run, for the tests of what is left of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sqlalchemy import text

from worker.app import app

_RAN = text("INSERT INTO ran (job_id, label) VALUES (:job, :label)")


def _stay(self: Any, log: str, seconds: float) -> str:
    self.session.execute(_RAN, {"job": self.request.id, "label": "ran"})
    with Path(log).open("a") as file:
        file.write(f"{self.request.id}\n")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)
    return "stayed"


@app.task(bind=True, lock="matrix:{args[0]}", on_busy="wait", lock_wait_s=60.0)
def in_redis(self: Any, name: str, log: str, seconds: float) -> str:
    return _stay(self, log, seconds)


@app.task(bind=True, lock="matrix:{args[0]}", lock_backend="postgres", on_busy="wait", lock_wait_s=60.0)
def in_postgres(self: Any, name: str, log: str, seconds: float) -> str:
    return _stay(self, log, seconds)


@app.task(bind=True, lock="matrix:{args[0]}", max_retries=2)
def retried(self: Any, name: str, log: str, seconds: float) -> str:
    done = _stay(self, log, seconds)
    if self.request.retries < 1:
        raise self.retry(countdown=0)
    return done
