"""Measure what is lost and what happens twice under the same faults: bare Celery in its soundest configuration beside Holdfast.

A job leaves a row each time it runs and has one effect, a row in Postgres: with bare Celery in a transaction of its own, with
Holdfast in `self.session`. The seed sets how many jobs are done when a fault comes, so both systems meet the same ones.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from redis import Redis

from benchmarks import effects
from benchmarks.support import Program, Report, Servers, console, create_database, eventually, options, servers, told_by

SYSTEMS = {"bare": "bare Celery", "holdfast": "Holdfast"}
#: Seconds without a further run after which none is expected any more: longer than either system takes to notice a death.
QUIET_S = {False: 24.0, True: 12.0}
#: As short as FACTS had it, and shorter where all is small.
VISIBILITY_S = {False: 10.0, True: 4.0}
#: Signs of life as short as bare Celery's visibility timeout, where all is small.
SHORT = {"HOLDFAST_NODE_BEAT_S": "0.5", "HOLDFAST_NODE_DEAD_S": "4", "HOLDFAST_AUDIT_AFTER_S": "2"}
#: Seconds that work may stand still before a fault is due, as while a lost worker's jobs come back.
PATIENCE_S = 120.0


class System:
    """One system at work on a database of its own: jobs go in, and its workers can be broken."""

    def __init__(self, name: str, here: Servers, database: str, *, quick: bool) -> None:
        self.name, self.quick, self.redis = name, quick, here.stack.redis
        url = create_database(here.stack.postgres.url, database)
        self.env = {**here.env(url), "BENCH_VISIBILITY_S": str(VISIBILITY_S[quick])}
        if name == "holdfast":
            self.env |= {"HOLDFAST_INCLUDE": "benchmarks.peers.holdfast", **(SHORT if quick else {})}
        here.flush()
        self._about = self._tell("prepare", {})
        self.conn = psycopg.connect(url, autocommit=True)
        self.conn.execute(effects.TABLES)
        self.jobs = 0
        self._programs = [Program(*line, name=name, ready="ready", env=self.env).start() for line in self._about["helpers"]]

    def _tell(self, verb: str, what: dict[str, object]) -> dict[str, list[list[str]]]:
        told: dict[str, list[list[str]]] = told_by("-m", "benchmarks.peers", self.name, verb, json.dumps(what), env=self.env)
        return told

    def enqueue(self, jobs: int, seconds: float = 0.0, countdown: float | None = None) -> None:
        """Enqueue jobs that take so many seconds each, due now or after a countdown."""
        self._tell("work", {"first": self.jobs, "jobs": jobs, "seconds": seconds, "countdown": countdown})
        self.jobs += jobs

    def worker(self) -> Program:
        """Start a worker and wait until it is ready."""
        command = [*self._about["worker"], "-l", "INFO"]
        program = Program(*command, name=self.name, ready=r"@\S+ ready\b", env=self.env).start()
        self._programs.append(program)
        return program

    def sized(self, full: int, quick: int) -> int:
        """Return what fits the size of this run."""
        return quick if self.quick else full

    def runs(self) -> int:
        """Return how many times jobs have run."""
        return effects.count(self.conn).runs

    def work_off(self, more: int) -> None:
        """Wait until so many more runs have begun."""
        goal = self.runs() + more
        eventually(lambda: self.runs() >= goal, PATIENCE_S, what=f"{self.name}: {more} more runs", every=0.02)

    def end(self, since: float) -> effects.Count:
        """Wait until nothing has happened for a while, at the earliest `since`; stop everything and return what took place."""
        seen, changed = effects.count(self.conn), since
        while time.time() - changed < QUIET_S[self.quick]:
            time.sleep(0.25)
            if (now := effects.count(self.conn)) != seen:
                seen, changed = now, max(time.time(), since)
        self.close()
        return seen

    def close(self) -> None:
        """Kill its programs."""
        for program in self._programs:
            program.kill_tree()
        self.conn.close()


# ---- the faults; each returns when the last one struck


def kill_workers(system: System, rng: random.Random) -> float:
    """Kill -9 of a busy worker and its children, and a new one each time."""
    times = system.sized(20, 5)
    system.enqueue(300 * times, seconds=0.002)
    worker = system.worker()
    for _ in range(times):
        system.work_off(rng.randint(20, 200))
        worker.kill_tree()
        struck = time.time()
        worker = system.worker()
    return struck


def flush(system: System, rng: random.Random) -> float:
    """FLUSHALL of Redis under load."""
    return _midway(system, rng, lambda client: client.flushall())


def cut_clients(system: System, rng: random.Random) -> float:
    """CLIENT KILL of every connection to Redis under load, five times."""

    def cut(client: Redis) -> None:
        for kind in ("normal", "pubsub"):
            client.execute_command("CLIENT", "KILL", "TYPE", kind)

    return _midway(system, rng, cut, times=5)


def restart_without_disk(system: System, rng: random.Random) -> float:
    """A crash of Redis under load that takes its disk along."""
    return _midway(system, rng, lambda _: system.redis.restart(without_disk=True))


def _midway(system: System, rng: random.Random, strike: Callable[[Redis], object], times: int = 1) -> float:
    jobs = system.sized(2000, 500)
    system.enqueue(jobs, seconds=0.002)
    system.worker()
    for _ in range(times):
        system.work_off(rng.randint(jobs // 10, jobs // 6))
        with Redis.from_url(system.redis.url) as client:
            strike(client)
        struck = time.time()
    return struck


def kill_idle(system: System, rng: random.Random) -> float:
    """SIGSTOP of an idle worker, one job pushed, then kill -9; several times."""
    with Redis.from_url(system.redis.url) as client:
        for _ in range(system.sized(6, 2)):
            worker = system.worker()
            eventually(lambda: client.info("clients")["blocked_clients"], what="a worker that waits for a message")
            worker.freeze()
            system.enqueue(1)
            worker.kill_tree()
            struck = time.time()
    system.worker()
    return struck


def kill_children(system: System, rng: random.Random) -> float:
    """Kill -9 of a pool's child in the middle of a job of one second."""
    system.enqueue(system.sized(20, 8), seconds=1.0)
    worker = system.worker()
    for _ in range(system.sized(5, 2)):
        system.work_off(2)
        time.sleep(rng.uniform(0.2, 0.8))
        worker.children()[rng.randrange(2)].send_signal(signal.SIGKILL)
        struck = time.time()
    return struck


def count_down(system: System, rng: random.Random) -> float:
    """A countdown beyond the visibility timeout, with two workers; done when due is 0 s."""
    system.worker()
    system.worker()
    countdown = 2.5 * VISIBILITY_S[system.quick]
    system.enqueue(system.sized(50, 20), countdown=countdown)
    return time.time() + countdown


FAULTS = {
    "kill -9 of busy workers": kill_workers,
    "FLUSHALL": flush,
    "CLIENT KILL of all": cut_clients,
    "Redis restarts without its disk": restart_without_disk,
    "idle worker stopped, then killed": kill_idle,
    "kill -9 of pool children": kill_children,
    "countdown over the visibility timeout": count_down,
}


@dataclass(frozen=True)
class Row:
    """What one fault did to one system."""

    jobs: int
    lost: int
    reruns: int
    doubles: int
    done_s: float | None


def suffer(system: System, fault: Callable[[System, random.Random], float], seed: str) -> Row:
    """Let a system go through a fault and count."""
    try:
        since = fault(system, random.Random(seed))
        found = system.end(since)
    finally:
        system.close()
    done_s = None if found.last_done is None else max(0.0, found.last_done - since)
    doubles = found.effects - found.jobs_done
    return Row(system.jobs, system.jobs - found.jobs_done, found.runs - found.jobs_run, doubles, done_s)


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="repeats the moments of the faults")
    parser.add_argument("--only", default="", help="only the faults whose name holds this")
    given = parser.parse_args()
    report = Report(as_json=given.json)
    report.figure("seed", given.seed)
    lines, rows = [], []
    with servers() as here:
        for index, (title, fault) in enumerate((t, f) for t, f in FAULTS.items() if given.only in t):
            for name, known_as in SYSTEMS.items():
                console.print(f"[dim]{title}: {known_as}[/]")
                system = System(name, here, f"survival_{name}_{index}", quick=given.quick)
                row = suffer(system, fault, f"{given.seed} {title}")
                rows.append((name, row))
                lines.append([title if name == "bare" else "", known_as, row.jobs, row.lost, row.reruns, row.doubles,
                              "" if row.done_s is None else f"{row.done_s:.1f}"])  # fmt: skip
                for what, value in vars(row).items():
                    report.figure(f"{title}, {known_as}: {what}", value)
    columns = ["fault", "", "jobs", "lost", "run again", "effects twice", "done after s"]
    report.table(f"the same faults, seed {given.seed}", columns, lines)
    report.target("Holdfast, jobs lost", sum(row.lost for name, row in rows if name == "holdfast"), most=0)
    report.target("Holdfast, effects twice", sum(row.doubles for name, row in rows if name == "holdfast"), most=0)
    report.print()


if __name__ == "__main__":
    main()
