"""The job `jobs.bulk`: it acts on many jobs, chosen by id or by a search, and goes on whoever has closed a page."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from worker.app import app
from worker.db import raw, repeatable
from worker.engine.acts import ACTS, Act
from worker.errors import InvalidJob, JobNotFound
from worker.ledger import bulk, trail
from worker.ledger.search import Search

#: Refusals told one by one; the rest is counted.
_TOLD = 20
#: Seconds between two looks whether it is to stop.
_LOOK_S = 0.5


@app.task(name=bulk.TASK, bind=True)  # type: ignore[untyped-decorator]
def act_on_many(
    self: Any, *, verb: str, by: str, ids: list[str] | None = None, which: dict[str, Any] | None = None
) -> dict[str, Any]:  # fmt: skip
    """Do it to each of the jobs and return how many it was done to, how many refused and why, and whether it was stopped.

    Run again after the death of its worker it takes what is left: what was done is not chosen again, or refuses.

    It does so only for an operator who asked for this very job: a task can be called by whoever may enqueue, and jobs of others
    are none of theirs. The console writes that into the trail in the transaction in which it hands the job in.
    """
    if not repeatable(lambda conn: trail.tells(conn, by, f"bulk.{verb}", self.request.id)):
        raise InvalidJob(f"no operator {by!r} asked for this job in the console")
    act = ACTS[verb]
    chosen = ids if ids is not None else _chosen(act, bulk.read(which or {}), self.request.id)
    done: Counter[str] = Counter()
    why: list[str] = []
    refused, looked_at, stopped = 0, time.monotonic(), False
    for number, job_id in enumerate(chosen, 1):
        try:
            done[act.do(app, job_id, None)] += 1
        except (InvalidJob, JobNotFound) as exc:
            refused += 1
            why += [str(exc)] if len(why) < _TOLD else []
        self.progress(number, len(chosen), f"{refused} refused" if refused else "")
        if time.monotonic() - looked_at >= _LOOK_S:
            looked_at = time.monotonic()
            if stopped := self.cancelled:
                break
    told = {"done": dict(done), "refused": refused, "why": why, "chosen": len(chosen), "stopped": stopped}
    trail.write(raw(self.session), by, f"bulk.{verb}.end", self.request.id, **{**told, "why": why[:1]})
    return told


def _chosen(act: Act, which: Search, but: str) -> list[str]:
    meant = bulk.narrowed(which, act.states, act.default)
    found = repeatable(lambda conn: bulk.choose(conn, meant)[0]) if meant else []
    return [job_id for job_id in found if job_id != but]
