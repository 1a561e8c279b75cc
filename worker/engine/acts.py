"""What people do to jobs: cancel, retry, replay, discard; each act is one transaction with what its asker writes beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from celery.exceptions import Reject

from worker.cache import outbox
from worker.db import statement
from worker.engine.application import Holdfast
from worker.errors import InvalidJob
from worker.ledger import manage
from worker.ledger.settle import Guard
from worker.states import ACTIVE_STATES, FINAL_STATES, JobState

#: Writes something in the transaction of an act, such as an entry of the trail.
Also = Callable[[psycopg.Connection[Any]], object]


@dataclass(frozen=True, slots=True)
class Act:
    """One of them. `do` returns what was done to the job of an id, or raises `InvalidJob` or `JobNotFound`.

    It makes sense in `states`; where jobs are chosen by a filter that names none, those in `default` are meant.
    """

    verb: str
    do: Callable[[Holdfast, str, Also | None], str]
    living: bool
    states: tuple[JobState, ...]
    default: tuple[JobState, ...]


def cancel(app: Holdfast, job_id: str, also: Also | None = None) -> str:
    """Cancel a job that waits, or ask a running one to stop."""
    done: str | None = app.control.cancel(job_id, also)
    if done is None:
        raise InvalidJob(f"job {job_id} is {_state(job_id)}; there is nothing to cancel")
    return done


def retry(app: Holdfast, job_id: str, also: Also | None = None) -> str:
    """Let a job that waits for its time run now."""
    with statement() as conn, conn.transaction():
        if manage.retry_now(conn, job_id):
            if also is not None:
                also(conn)
            return "due now"
    state = _state(job_id)
    hint = f": `holdfast jobs replay {job_id}` runs it again" if state in FINAL_STATES else ""
    raise InvalidJob(f"job {job_id} is {state}, not waiting for its time{hint}")


def replay(app: Holdfast, job_id: str, also: Also | None = None) -> str:
    """Run a job of the past again under its id."""
    with statement() as conn, outbox.transaction(conn):
        manage.replay(conn, job_id)
        if also is not None:
            also(conn)
    return "queued again"


def discard(app: Holdfast, job_id: str, also: Also | None = None) -> str:
    """End a job that waits as one that failed for good, error callbacks and all."""
    if app.backend.end_job(
        job_id, Guard.waiting(), Reject("discarded by hand"), JobState.DISCARDED, "discarded by hand", also=also
    ):
        return "discarded"
    raise InvalidJob(f"job {job_id} is {_state(job_id)}; only one that waits is discarded")


def _state(job_id: str) -> str:
    with statement() as conn:
        return str(manage.show(conn, job_id)["state"])


_WAITING = (JobState.SCHEDULED, JobState.QUEUED)

#: The acts by verb.
ACTS = {
    act.verb: act
    for act in (
        Act("cancel", cancel, True, ACTIVE_STATES, ACTIVE_STATES),
        Act("retry", retry, True, (JobState.SCHEDULED,), (JobState.SCHEDULED,)),
        Act("replay", replay, False, FINAL_STATES, (JobState.FAILED, JobState.DISCARDED)),
        Act("discard", discard, True, _WAITING, _WAITING),
    )
}
