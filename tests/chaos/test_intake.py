"""Relays killed while services append to the intake stream and it is trimmed: each entry is one job, and its events are there."""

from __future__ import annotations

import json
import random
import threading
import time

from redis import Redis

from tests.chaos import support, tasks
from tests.chaos.conftest import Start
from tests.chaos.support import sized
from tests.harness import Relay, eventually
from worker.store import keys
from worker.streams import Stream, groups_of

#: All that is done with is trimmed at once, and what a dead relay holds is taken over soon.
SETTINGS = {
    "HOLDFAST_INCLUDE": support.TASKS, "HOLDFAST_INTAKE_KEEP_SIZE": "0", "HOLDFAST_INTAKE_RECLAIM_S": "1.0",
}  # fmt: skip

#: Seconds in which all must be over once the last relay was killed.
END_S = sized(40.0, 120.0)


class Service:
    """Appends entries all the time, some with a key and some of those twice, and keeps what it asked for."""

    def __init__(self, broker: Redis) -> None:
        self.notes: list[str] = []
        self._broker, self._stop = broker, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Service:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            number = len(self.notes)
            note = f"entry {number}"
            fields = {"task": tasks.write.name, "args": json.dumps([note]), "caller": "service"}
            if number % 3 == 0:
                fields["key"] = note
            for _ in range(2 if number % 6 == 0 else 1):
                self._broker.xadd(keys.intake(), fields)  # type: ignore[arg-type]
            self.notes.append(note)


def test_relays_killed_under_load_lose_and_double_no_entry(
    rng: random.Random, broker: Redis, arena: Start, crew: Start
) -> None:
    relays = [Relay(), Relay()]
    worker = support.worker("threads")
    arena(worker)
    crew(*relays)
    with Service(broker) as service:
        for _ in range(sized(4, 20)):
            time.sleep(rng.uniform(0.2, 0.8))
            victim = rng.choice(relays)
            victim.kill_tree()
            victim.start(wait=False)
    stream = Stream(keys.intake())
    eventually(lambda: [(one.lag, one.pending) for one in groups_of(stream)] == [(0, 0)], END_S, what="every entry taken in")
    eventually(lambda: not support.one("SELECT count(*) FROM jobs"), END_S, what="every job ended")
    found = support.notes()
    assert {note: found[note] for note in service.notes} == dict.fromkeys(service.notes, 1)
    assert support.one("SELECT count(*) FROM job_history") == len(service.notes)
    eventually(lambda: len(stream) == 0, what="all of it trimmed")
    assert not broker.exists(keys.dead(keys.intake()))
    wanted = {str(row[0]) for row in support.rows("SELECT id FROM job_events")}
    assert len(wanted) == 3 * len(service.notes)
    eventually(lambda: {entry.text("id") for entry in Stream(keys.events()).scan()} == wanted, END_S, what="every event carried")
