"""The entrances: callers that enqueue jobs, each in its own way, and note what they were told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

import httpx
from celery import Celery, chain, chord
from kombu.exceptions import OperationalError

from worker.app import app, enqueue_in, enqueue_many
from worker.cli.demo import record, tasks
from worker.cli.demo.book import Book, Pace
from worker.cli.demo.plan import LINKS, PARTS, Entrance, Plan, portion
from worker.db import session, statement
from worker.errors import HoldfastError
from worker.settings import settings
from worker.tasks.http import http_call

#: Rounds in which each caller calls its share.
_ROUNDS = 25
#: Milliseconds a job works at the most, but for one in `_LONG_ONE_IN`: so that somebody is half-way whenever a worker dies.
_WORK_MS, _LONG_MS, _LONG_ONE_IN = 10, 200, 40
#: Seconds after which a foreign client takes a message that nobody has adopted for lost.
_ADOPTED_S = 3.0
#: Seconds a caller gets to finish its call at the end.
_GOODBYE_S = 5.0
#: Seconds between two tries of a client that got no answer.
_AGAIN_S = 0.2

Push = Callable[[int], None]


class Callers:
    """All callers, each in a thread; those of Python share one, the others have to wait for something."""

    def __init__(self, plan: Plan, book: Book, pace: Pace, *, counting_url: str, flower_url: str) -> None:
        self._plan, self._book, self._pace = plan, book, pace
        self._counting_url, self._flower_url = counting_url, flower_url
        self._random = {entrance: plan.random(entrance) for entrance in Entrance}
        self._foreign = _foreign_client()
        self._commands: subprocess.Popen[str] | None = None
        self._threads = [
            threading.Thread(target=self._call, args=(pushes,), name=f"demo-{name}", daemon=True)
            for name, pushes in self._pushes().items()
        ]
        self._failure: Exception | None = None

    def _pushes(self) -> Mapping[str, Mapping[Entrance, Push]]:
        return {
            "python": {
                Entrance.DELAY: self._delay, Entrance.TRANSACTION: self._transact, Entrance.CHAIN: self._chain,
                Entrance.CHORD: self._chord, Entrance.HTTP: self._http, Entrance.MANY: self._many,
            },
            "foreign": {Entrance.FOREIGN: self._send_foreign},
            "flower": {Entrance.FLOWER: self._post},
            "command": {Entrance.COMMAND: self._command},
        }  # fmt: skip

    def start(self) -> None:
        """Begin to call."""
        # What Celery makes on first use it makes here, not in whichever thread comes first.
        app.finalize()
        _ = app.amqp.send_task_message, self._foreign.amqp.send_task_message
        for thread in self._threads:
            thread.start()

    @property
    def finished(self) -> bool:
        """Whether all has been called. Raises what made a caller fail."""
        if self._failure is not None:
            raise self._failure
        return not any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Stop calling."""
        self._pace.stop()
        if self._commands is not None:
            self._commands.kill()
        for thread in self._threads:
            thread.join(_GOODBYE_S)

    def _call(self, pushes: Mapping[Entrance, Push]) -> None:
        try:
            for number in range(_ROUNDS):
                if not self._pace.wait(number / _ROUNDS):
                    return
                for entrance, push in pushes.items():
                    units = self._plan.shares[entrance] // _UNITS.get(entrance, 1)
                    if amount := portion(units, number, _ROUNDS):
                        push(amount)
        except Exception as exc:
            self._failure = exc

    def _call_of(self, entrance: Entrance) -> tuple[str, float]:
        random = self._random[entrance]
        work_ms = _LONG_MS if random.randrange(_LONG_ONE_IN) == 0 else random.uniform(0, _WORK_MS)
        return entrance.value, round(work_ms, 1)

    # ---- Python

    def _delay(self, amount: int) -> None:
        for _ in range(amount):
            self._book.told(Entrance.DELAY, [tasks.effect.delay(*self._call_of(Entrance.DELAY)).id])

    def _many(self, amount: int) -> None:
        rows = [self._call_of(Entrance.MANY) for _ in range(amount)]
        self._book.told(Entrance.MANY, enqueue_many(tasks.effect, rows))

    def _http(self, amount: int) -> None:
        rows = [{"url": self._counting_url, "method": "POST", "body": {"job": n}} for n in range(amount)]
        self._book.told(Entrance.HTTP, enqueue_many(http_call, rows))

    def _transact(self, amount: int) -> None:
        """Enqueue twice as much in two transactions of the caller's, and roll one of them back."""
        with session() as committed:
            with enqueue_in(committed):
                ids = [tasks.effect.delay(*self._call_of(Entrance.TRANSACTION)).id for _ in range(amount)]
            committed.commit()
        self._book.told(Entrance.TRANSACTION, ids)
        with session() as doomed:
            with enqueue_in(doomed):
                ids = [tasks.effect.delay(*self._call_of(Entrance.TRANSACTION)).id for _ in range(amount)]
            doomed.rollback()
        self._book.rolled_back(ids)

    def _chain(self, amount: int) -> None:
        for _ in range(amount):
            links = [tasks.link.s(*self._call_of(Entrance.CHAIN)) for _ in range(LINKS - 1)]
            result = chain(tasks.effect.s(*self._call_of(Entrance.CHAIN)), *links).apply_async()
            later = []
            while result.parent is not None:
                later.append(result.id)
                result = result.parent
            self._book.told(Entrance.CHAIN, [result.id])
            self._book.told(Entrance.CHAIN, later, later=True)

    def _chord(self, amount: int) -> None:
        for _ in range(amount):
            parts = [tasks.effect.s(*self._call_of(Entrance.CHORD)) for _ in range(PARTS)]
            body = chord(parts)(tasks.gather.s(Entrance.CHORD.value, PARTS))
            self._book.told(Entrance.CHORD, [part.id for part in body.parent.results])
            self._book.told(Entrance.CHORD, [body.id], later=True)

    # ---- a Celery client that has never heard of Holdfast

    def _send_foreign(self, amount: int) -> None:
        """Send messages until each has been adopted.

        Until then a foreign message is in Redis alone, and lost with it. What a careful client does about that is done here: it
        sends the same id again, and however often that arrives, it is one job.
        """
        calls = {str(uuid4()): self._call_of(Entrance.FOREIGN) for _ in range(amount)}
        missing, first = dict(calls), True
        while missing and not self._pace.stopped:
            for job_id, args in missing.items():
                self._send_one(job_id, args)
            self._book.sent_again += 0 if first else len(missing)
            first = False
            adopted = self._await_adoption(set(missing))
            self._book.told(Entrance.FOREIGN, adopted)
            missing = {job_id: args for job_id, args in missing.items() if job_id not in adopted}

    def _send_one(self, job_id: str, args: tuple[Any, ...]) -> None:
        while not self._pace.stopped:
            try:
                self._foreign.send_task(tasks.effect.name, args, task_id=job_id, queue=settings().foreign_queue, retry=False)
                return
            except (OperationalError, OSError):  # Redis is away: the client's own trouble, and it tries again.
                time.sleep(_AGAIN_S)

    def _await_adoption(self, ids: set[str]) -> set[str]:
        deadline, adopted = time.monotonic() + _ADOPTED_S, set[str]()
        while adopted < ids and time.monotonic() < deadline and not self._pace.stopped:
            with statement() as conn:
                adopted = record.known(conn, sorted(ids))
            time.sleep(0.05)
        return adopted

    # ---- Flower

    def _post(self, amount: int) -> None:
        with httpx.Client(base_url=self._flower_url, timeout=10.0, trust_env=False) as client:
            for _ in range(amount):
                self._post_one(client)

    def _post_one(self, client: httpx.Client) -> None:
        """Post until there is an answer; under one id, so that a repeat after a lost answer is the same job."""
        job_id = str(uuid4())
        document = {"args": self._call_of(Entrance.FLOWER), "task_id": job_id}
        while not self._pace.stopped:
            try:
                answer = client.post(f"/api/task/async-apply/{tasks.effect.name}", json=document)
                if answer.status_code == httpx.codes.OK:
                    self._book.told(Entrance.FLOWER, [answer.json()["task-id"]])
                    return
            except httpx.TransportError:
                pass
            time.sleep(_AGAIN_S)

    # ---- the command line

    def _command(self, amount: int) -> None:
        for _ in range(amount):
            arguments = ["run", tasks.effect.name, *map(str, self._call_of(Entrance.COMMAND)), "--json"]
            self._commands = subprocess.Popen(
                [sys.executable, "-m", "worker.cli", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True, env=os.environ, start_new_session=True,
            )  # fmt: skip
            out, err = self._commands.communicate()
            if self._commands.returncode != 0:
                if self._pace.stopped:
                    return
                last = (err.strip().splitlines() or [""])[-1]
                raise HoldfastError(f"`holdfast run` ended with {self._commands.returncode}: {last}")
            self._book.told(Entrance.COMMAND, [json.loads(out)["id"]])


#: Jobs that one call makes, where it is more than one.
_UNITS = {Entrance.CHAIN: LINKS, Entrance.CHORD: PARTS + 1}


def _foreign_client() -> Celery:
    """Return a plain Celery application that knows the broker's address and nothing else."""
    client = Celery("foreign", broker=settings().redis_url, set_as_current=False, fixups=[])
    client.conf.update(
        task_ignore_result=True, broker_transport_options={"socket_timeout": 2, "socket_connect_timeout": 2},
        broker_connection_timeout=2,
    )  # fmt: skip
    return client
