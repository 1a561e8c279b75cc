"""The entrances: callers that enqueue jobs, each in its own way, and note what they were told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from tempfile import NamedTemporaryFile
from typing import Any
from uuid import uuid4

import httpx
from celery import Celery, chain, chord
from kombu.exceptions import OperationalError

from worker.app import app, enqueue_in, enqueue_many
from worker.cli.demo import record, tasks
from worker.cli.demo.book import Book, Pace
from worker.cli.demo.plan import LINKS, PARTS, Entrance, Plan, portion
from worker.client import Client, Options
from worker.db import session, statement
from worker.errors import HoldfastError, StoreUnavailable
from worker.settings import settings
from worker.store import keys
from worker.streams import Stream
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
#: Seconds for which a client of the gateway tries again: more than anything is away here.
_PATIENCE_S = 60.0
#: One of so many jobs of the gateway is to be told of to the counting server.
_TOLD_ONE_IN = 5

Push = Callable[[int], None]


class Callers:
    """All callers, each in a thread; those of Python share one, the others have to wait for something."""

    def __init__(
        self, plan: Plan, book: Book, pace: Pace, *, counting_url: str, flower_url: str, gateway: tuple[str, str],
        callback_url: str,
    ) -> None:  # fmt: skip
        self._plan, self._book, self._pace = plan, book, pace
        self._counting_url, self._flower_url, self._callback_url = counting_url, flower_url, callback_url
        self._gateway = Client(*gateway, patience_s=_PATIENCE_S)
        self._random = {entrance: plan.random(entrance) for entrance in Entrance}
        self._foreign = _foreign_client()
        self._intake = Stream(keys.intake())
        self._commands: set[subprocess.Popen[str]] = set()
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
            "gateway": {Entrance.GATEWAY: self._post_jobs},
            "sql": {Entrance.SQL: self._select},
            "stream": {Entrance.STREAM: self._append},
            "import": {Entrance.IMPORT: self._import},
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
        for command in list(self._commands):
            command.kill()
        for thread in self._threads:
            thread.join(_GOODBYE_S)

    def _call(self, pushes: Mapping[Entrance, Push]) -> None:
        try:
            for number in range(_ROUNDS):
                if not self._pace.wait(number / _ROUNDS):
                    return
                for entrance, push in pushes.items():
                    units = self._plan.shares[entrance] // _UNITS.get(entrance, 1)
                    if entrance is Entrance.IMPORT:  # one file of them all, in the middle: it is a process that imports Celery
                        amount = units if number == _ROUNDS // 2 else 0
                    else:
                        amount = portion(units, number, _ROUNDS)
                    if amount:
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

    # ---- HTTP, SQL, a stream

    def _post_jobs(self, amount: int) -> None:
        """Post jobs, one in `_TOLD_ONE_IN` to be told of."""
        for number in range(amount):
            told = number % _TOLD_ONE_IN == 0
            options: Options = {"callback_url": self._callback_url} if told else {}
            job_id = self._gateway.enqueue(tasks.effect.name, self._call_of(Entrance.GATEWAY), **options)
            self._book.told(Entrance.GATEWAY, [job_id])
            if told:
                self._book.called_back([job_id])

    def _select(self, amount: int) -> None:
        with statement() as conn:
            for _ in range(amount):
                self._book.told(Entrance.SQL, [record.enqueue(conn, *self._call_of(Entrance.SQL))])

    def _append(self, amount: int) -> None:
        """Append entries until each has a job: until then it is in Redis alone, and its key makes that repeatable."""
        calls = {str(uuid4()): self._call_of(Entrance.STREAM) for _ in range(amount)}
        missing = dict(calls)
        while missing and not self._pace.stopped:
            for key, args in missing.items():
                self._append_one(key, args)
            found = self._await_jobs("demo-stream", set(missing))
            self._book.told(Entrance.STREAM, found.values())
            missing = {key: args for key, args in missing.items() if key not in found}

    def _append_one(self, key: str, args: tuple[Any, ...]) -> None:
        entry = {"task": tasks.effect.name, "args": json.dumps(args), "key": key, "caller": "demo-stream"}
        while not self._pace.stopped:
            try:
                self._intake.append(entry)
                return
            except StoreUnavailable:
                time.sleep(_AGAIN_S)

    def _await_jobs(self, caller: str, wanted: set[str]) -> dict[str, str]:
        deadline, found = time.monotonic() + _ADOPTED_S, dict[str, str]()
        while found.keys() != wanted and time.monotonic() < deadline and not self._pace.stopped:
            with statement() as conn:
                found = record.by_key(conn, caller, sorted(wanted))
            time.sleep(0.05)
        return found

    # ---- the command line

    def _command(self, amount: int) -> None:
        for _ in range(amount):
            out = self._holdfast("run", tasks.effect.name, *map(str, self._call_of(Entrance.COMMAND)), "--json")
            if out is not None:
                self._book.told(Entrance.COMMAND, [json.loads(out)["id"]])

    def _import(self, amount: int) -> None:
        """Import a file; its keys tell which jobs it made."""
        lines = {str(uuid4()): self._call_of(Entrance.IMPORT) for _ in range(amount)}
        with NamedTemporaryFile("w", suffix=".jsonl") as file:
            for key, args in lines.items():
                call = {"task": tasks.effect.name, "args": args, "idempotency_key": key, "caller": "demo-import"}
                file.write(json.dumps(call) + "\n")
            file.flush()
            if self._holdfast("import", file.name, "--json") is None:
                return
        with statement() as conn:
            self._book.told(Entrance.IMPORT, record.by_key(conn, "demo-import", sorted(lines)).values())

    def _holdfast(self, *arguments: str) -> str | None:
        """Run a command and return what it printed; None when the demo was stopped meanwhile. Raises `HoldfastError`."""
        command = subprocess.Popen(
            [sys.executable, "-m", "worker.cli", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=os.environ, start_new_session=True,
        )  # fmt: skip
        self._commands.add(command)
        out, err = command.communicate()
        self._commands.discard(command)
        if command.returncode == 0:
            return out
        if self._pace.stopped:
            return None
        last = (err.strip().splitlines() or [""])[-1]
        raise HoldfastError(f"`holdfast {arguments[0]}` ended with {command.returncode}: {last}")


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
