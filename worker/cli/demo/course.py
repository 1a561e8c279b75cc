"""The course of the demo: start everything, push, break, count, judge."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from worker.cli.demo import plan as plans
from worker.cli.demo import record
from worker.cli.demo.book import Book, Pace
from worker.cli.demo.breaking import Breaker
from worker.cli.demo.counting import CountingServer
from worker.cli.demo.entrances import Callers
from worker.cli.demo.figures import Evidence, Figures, Promise, count, verdict
from worker.cli.demo.plan import Entrance, Plan
from worker.cli.demo.screen import Screen, screen
from worker.cli.demo.system import SHORTENED, Interrupts, System, apart
from worker.cli.exits import ExitCode
from worker.cli.invitation import invite
from worker.cli.output import emit, note
from worker.db import statement

#: Seconds between two looks at the record.
_LOOK_S = 0.25
#: Seconds without any job ending after which nothing is waited for any more: several times what a rescue takes.
_STALL_S = 45.0


def run_demo(*, jobs: int = 5000, seed: int | None = None, as_json: bool = False, keep: bool = False) -> int:
    """Push so many jobs through every entrance, break Redis and a worker meanwhile, and count what came of them.

    With `keep` everything goes on after the verdict, with a way into the console, until Ctrl-C. Runs on servers and in a folder
    of its own, whatever is configured. Returns the exit code: 0 if nothing was lost, doubled or done against a rollback, else 1.
    Raises `ValueError` for too few jobs.
    """
    plan = plans.make(jobs, secrets.randbelow(2**31) if seed is None else seed)
    with apart(), screen(as_json=as_json) as shown, Interrupts() as interrupts:
        shortened = ", ".join(f"{name} {value:g}" for name, value in SHORTENED.items())
        shown.tell(f"seed {plan.seed}; shortened for the demo: {shortened}")
        with System(interrupts) as system, CountingServer() as counting:
            course = Course(plan, shown, system, counting, interrupts)
            figures = course.run()
            system.keep = not figures.passed
            shown.close(figures)
            _tell(course.account(figures, shown.elapsed_s), as_json)
            if keep:
                invite(f"{system.gateway_url}/console")
                note("everything goes on until Ctrl-C")
                interrupts.wait()
    if not figures.passed:
        note(f"to look into it: HOLDFAST_HOME={system.folder} holdfast jobs ls; the programs' log is {system.log}")
    return ExitCode.OK if figures.passed else ExitCode.NO


def _tell(account: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(account)
    else:
        print(account["verdict"], flush=True)


class Course:
    """One demo on a system that has been started."""

    def __init__(self, plan: Plan, shown: Screen, system: System, counting: CountingServer, interrupts: Interrupts) -> None:
        self._plan, self._shown, self._system, self._counting = plan, shown, system, counting
        self._interrupts = interrupts
        self._book, self._pace = Book(), Pace(plan.jobs)
        self._breaker = Breaker(plan, system.stack, shown.tell)
        self._callers = Callers(plan, self._book, self._pace, counting_url=counting.url, flower_url=system.flower_url,
                                gateway=(system.gateway_url, system.gateway_key), callback_url=counting.callback_url)  # fmt: skip

    def run(self) -> Figures:
        """Go through it and return the final figures."""
        self._system.await_ready()
        self._shown.tell("Postgres, two Redis servers, relay, beat, two workers, gateway and Flower are up")
        try:
            self._callers.start()
            self._follow(lambda figures: self._callers.finished and self._breaker.finished and not figures.total.open)
            self._follow(lambda _: self._stop_ticking())
            self._follow(lambda figures: not figures.total.open and not figures.callbacks_missing)
        finally:
            self._callers.close()
        return self._count(final=True)

    def account(self, figures: Figures, seconds: float) -> dict[str, Any]:
        """Return all that a program may want to know of the outcome."""
        breaker = self._breaker
        told = verdict(figures, redis_losses=breaker.redis_losses, workers_killed=breaker.workers_killed, seconds=seconds)
        return {
            "passed": figures.passed, "verdict": told, "seed": self._plan.seed, "jobs": self._plan.jobs,
            "seconds": round(seconds, 1), **figures.as_dict(),
            "redis_losses": breaker.redis_losses, "workers_killed": breaker.workers_killed,
            "breaks": [asdict(one) for one in self._plan.breaks], "victim": self._plan.victim,
            "events": [{"at_s": at, "what": what} for at, what in self._shown.events], "shortened": SHORTENED,
        }  # fmt: skip

    def _follow(self, over: Callable[[Figures], bool]) -> None:
        """Look, break, show, until it is over or nothing moves any more."""
        done, moved = -1, time.monotonic()
        while True:
            self._interrupts.check()
            figures = self._count()
            self._shown.show(figures)
            if over(figures):
                return
            # The schedule ticks on whatever happens, so it does not count.
            if (now_done := figures.total.done - figures.entrances[Entrance.SCHEDULE].done) != done:
                done, moved = now_done, time.monotonic()
            elif time.monotonic() - moved > _STALL_S:
                self._shown.tell(f"no job has ended for {_STALL_S:g} s: nothing more is waited for")
                return
            self._pace.advance(done)
            self._breaker.look(done / self._plan.jobs)
            time.sleep(_LOOK_S)

    def _count(self, *, final: bool = False) -> Figures:
        promises, rolled_back = self._book.read()  # first: who was told an id before a look is in what it sees
        with statement() as conn:
            seen = record.see(conn)
        promises |= {job_id: Promise(Entrance.SCHEDULE) for job_id in seen.ticks}
        evidence = Evidence(
            self._plan.jobs, promises, seen.states, seen.effects, self._counting.requests(), rolled_back, self._book.callbacks(),
            self._counting.callbacks(), seen.died, self._book.sent_again,
        )  # fmt: skip
        return count(evidence, final=final)

    def _stop_ticking(self) -> bool:
        with statement() as conn:
            return record.try_stop_ticking(conn)
