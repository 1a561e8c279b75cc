"""The doors, each as those who use it do: how a job is handed in, cancelled, and its result had; and how a refusal is told."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from tests import harness
from tests.acceptance.conftest import House
from tests.harness import ROOT, eventually, programs_path
from worker import errors
from worker.client import Client

HERE = Path(__file__).parent
CALLER = "suite"


@dataclass(frozen=True)
class Call:
    """What a case asks of a door."""

    task: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    #: The id, at doors whose callers choose it.
    id: str | None = None
    delay_s: float | None = None
    expires_s: float | None = None
    queue: str | None = None
    priority: int | None = None
    callback_url: str | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields by the names that most doors have for them."""
        given = {"task": self.task, "args": list(self.args), "kwargs": dict(self.kwargs), "delay": self.delay_s,
                 "expires": self.expires_s, "queue": self.queue, "priority": self.priority,
                 "callback_url": self.callback_url}  # fmt: skip
        return {name: value for name, value in given.items() if value is not None}


class Refused(Exception):
    """A door has said no."""

    def __init__(self, code: str, field: str) -> None:
        super().__init__(f"{code} {field}")
        self.code, self.field = code, field


class Door:
    """A door."""

    name: str
    #: The cases it has no means to express, as the table of docs/guides/doors.md says.
    cannot: frozenset[str] = frozenset()
    #: Whether it has idempotency keys; the others are repeated by the id.
    has_keys = True

    def __init__(self, world: World) -> None:
        self.world = world

    @abstractmethod
    def hand_in(self, call: Call) -> str:
        """Hand a job in and return its id. Raises `Refused`."""

    def cancel(self, job_id: str) -> None:
        """Cancel a job."""
        raise NotImplementedError

    def result(self, job_id: str) -> Any:
        """Wait for a job's result."""
        raise NotImplementedError


@dataclass
class World:
    """Where the doors are."""

    house: House
    gateway_url: str
    flower_url: str
    api_key: str
    node_folder: Path


class Http(Door):
    """The gateway, by plain HTTP."""

    name = "HTTP"

    def _send(self, method: str, path: str, **given: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.world.api_key}", **given.pop("headers", {})}
        answer = httpx.request(method, self.world.gateway_url + path, headers=headers, timeout=40, trust_env=False, **given)
        if not answer.is_success:
            raise Refused(answer.json()["code"], answer.json()["field"])
        return answer.json()

    def hand_in(self, call: Call) -> str:
        headers = {"Idempotency-Key": call.key} if call.key else {}
        return str(self._send("POST", "/v1/jobs", json=call.fields(), headers=headers)["id"])

    def cancel(self, job_id: str) -> None:
        self._send("POST", f"/v1/jobs/{job_id}:cancel")

    def result(self, job_id: str) -> Any:
        return self._send("GET", f"/v1/jobs/{job_id}?wait=30s")["result"]


class Python(Door):
    """The Python client."""

    name = "Python client"

    def _client(self) -> Client:
        return Client(self.world.gateway_url, self.world.api_key, timeout_s=30)

    def hand_in(self, call: Call) -> str:
        with self._client() as client:
            try:
                return client.enqueue(**call.fields(), idempotency_key=call.key)
            except errors.HoldfastError as exc:
                raise Refused(exc.__dict__["code"], exc.__dict__["field"]) from exc

    def cancel(self, job_id: str) -> None:
        with self._client() as client:
            client.cancel(job_id)

    def result(self, job_id: str) -> Any:
        with self._client() as client:
            return client.wait(job_id, 30).result


class Sql(Door):
    """`psql`, as a user that has the role of the door and nothing else."""

    name = "SQL"
    cannot = frozenset({"cancel", "result"})

    def hand_in(self, call: Call) -> str:
        given = {**call.fields(), "key": call.key, "caller": CALLER}
        told = ", ".join(f"{name} => {self._literal(name, value)}" for name, value in given.items() if value is not None)
        done = run("psql", self.world.house.database_url, "-Atqc", f"select holdfast.enqueue({told})",
                   env={"PGOPTIONS": "-c role=holdfast_enqueuer"})  # fmt: skip
        if done.returncode:
            found = re.search(r"DETAIL:  (\{.*\})", done.stderr)
            assert found, done.stderr
            told_detail = json.loads(found[1])
            raise Refused(told_detail["code"], told_detail["field"])
        return done.stdout.strip()

    @staticmethod
    def _literal(name: str, value: Any) -> str:
        if name in ("delay", "expires"):
            return f"'{value} seconds'"
        if isinstance(value, int):
            return str(value)
        text = value if isinstance(value, str) else json.dumps(value)
        return "'" + text.replace("'", "''") + "'"


class Stream(Door):
    """`redis-cli XADD`; what became of an entry is read where it is told: in the events, or among the dead letters."""

    name = "Stream"
    cannot = frozenset({"cancel", "result"})

    def _redis(self, *command: str) -> list[str]:
        # Not by its URL: the redis-cli of 6.2 takes an empty user there for one called so.
        server = self.world.house.stack.redis
        done = run("redis-cli", "-p", str(server.port), *command, env={"REDISCLI_AUTH": server.password})
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def hand_in(self, call: Call) -> str:
        key = call.key or str(uuid4())
        given = {**call.fields(), "key": key, "caller": CALLER}
        texts = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in given.items()]
        (entry,) = self._redis("XADD", "holdfast:intake", "*", *(text for pair in texts for text in pair))
        eventually(lambda: self._is_handled(entry), 20, what=f"entry {entry} being taken in")
        letters = self._redis("XREVRANGE", "holdfast:intake:dead", "+", "-", "COUNT", "5")
        if entry in letters:
            after = letters[letters.index(entry) :]
            raise Refused(after[after.index("code") + 1], after[after.index("field") + 1])
        return eventually(lambda: self._job_of(key), 20, what=f"an event of {key}")

    def _is_handled(self, entry: str) -> bool:
        told = self._redis("XINFO", "GROUPS", "holdfast:intake")
        group = dict(zip(told[0::2], told[1::2], strict=True))
        return group["pending"] == "0" and _order(group["last-delivered-id"]) >= _order(entry)

    def _job_of(self, key: str) -> str | None:
        before = self._redis("XREVRANGE", "holdfast:events", "+", "-", "COUNT", "500")
        while key in before:
            before = before[: before.index(key)]
            if before[-1] == "key":
                return before[len(before) - before[::-1].index("job_id")]
        return None


def _order(entry: str) -> tuple[int, ...]:
    return tuple(map(int, entry.split("-")))


class Command(Door):
    """`holdfast run`; it tells a refusal in words."""

    name = "CLI"

    def hand_in(self, call: Call) -> str:
        options = {"--kwargs": call.kwargs and json.dumps(call.kwargs), "--in": call.delay_s and f"{call.delay_s}s",
                   "--expires": call.expires_s and f"{call.expires_s}s", "--queue": call.queue, "--priority": call.priority,
                   "--key": call.key, "--caller": CALLER}  # fmt: skip
        given = [str(part) for pair in options.items() if pair[1] for part in pair]
        done = self._holdfast("run", *given, call.task, *map(json.dumps, call.args))
        if done.returncode:
            raise Refused(str(done.returncode), done.stderr)
        return done.stdout.strip()

    def cancel(self, job_id: str) -> None:
        done = self._holdfast("jobs", "cancel", job_id)
        assert done.returncode == 0, done.stderr

    def result(self, job_id: str) -> Any:
        def ended() -> dict[str, Any] | None:
            told = json.loads(self._holdfast("jobs", "show", job_id, "--json").stdout)
            return told if told["state"] == "succeeded" else None

        return eventually(ended, 30, what=f"{job_id} succeeding")["result"]

    @staticmethod
    def _holdfast(*args: str) -> subprocess.CompletedProcess[str]:
        return harness.run("worker.cli", *args)


#: A process that is plain Celery: it knows the addresses and nothing of ours.
_PLAIN = """
import json, sys
from celery import Celery
call = json.loads(sys.argv[1])
app = Celery("plain", broker=call["broker"], backend=call["backend"])
if call.get("wait"):
    print(json.dumps(app.AsyncResult(call["wait"]).get(timeout=30)))
else:
    options = {name: value for name, value in call["options"].items() if value is not None}
    print(json.dumps(app.send_task(call["task"], call["args"], call["kwargs"], **options).id))
"""


class Foreign(Door):
    """A door for Celery's own messages: the caller chooses the id, and what is wrong with a job shows in its row."""

    has_keys = False

    def unknown(self, job_id: str) -> None:
        """Raise `Refused` once the message has been set aside because nobody knows its task."""
        raw = "convert_from(decode(message ->> 'raw', 'base64'), 'utf8')"
        sql = f"SELECT error FROM job_history WHERE state = 'discarded' AND {raw} ~ %s"
        ((error,),) = eventually(lambda: self.world.house.sql(sql, job_id), 20, what="the message being set aside")
        raise Refused("unknown_task" if "unknown task" in error else error, "task")


class PlainCelery(Foreign):
    """`app.send_task` of a process that is plain Celery, into the queue `celery`."""

    name = "Python Celery"
    cannot = frozenset({"conflict", "cancel", "bad input"})

    def _plain(self, **call: Any) -> Any:
        stack = self.world.house.stack
        document = json.dumps({"broker": stack.redis.url, "backend": stack.cache.url, **call})
        done = run(sys.executable, "-c", _PLAIN, document, cwd=self.world.node_folder)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def hand_in(self, call: Call) -> str:
        options = {"task_id": call.id, "countdown": call.delay_s, "expires": call.expires_s}
        return str(self._plain(task=call.task, args=call.args, kwargs=call.kwargs, options=options))

    def result(self, job_id: str) -> Any:
        return self._plain(wait=job_id)


class Node(Foreign):
    """The npm package `celery-node`."""

    name = "celery-node"
    cannot = frozenset({"conflict", "delay", "expire", "cancel", "bad input"})

    def _node(self, **call: Any) -> Any:
        stack = self.world.house.stack
        document = json.dumps({"broker": stack.redis.url, "backend": stack.cache.url, **call})
        done = run("node", str(HERE / "celery_node" / "send.js"), document, str(self.world.node_folder))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def hand_in(self, call: Call) -> str:
        return str(self._node(task=call.task, args=call.args, kwargs=call.kwargs, id=call.id))

    def result(self, job_id: str) -> Any:
        return self._node(wait=job_id)


class Flower(Foreign):
    """Flower's REST interface."""

    name = "Flower"
    cannot = frozenset({"conflict", "bad input"})

    def _send(self, method: str, path: str, document: Any = None) -> httpx.Response:
        return httpx.request(method, f"{self.world.flower_url}/api/task/{path}", json=document, timeout=30, trust_env=False)

    def hand_in(self, call: Call) -> str:
        options = {"task_id": call.id, "countdown": call.delay_s, "expires": call.expires_s}
        given = {name: value for name, value in options.items() if value is not None}
        document = {"args": call.args, "kwargs": call.kwargs, **given}
        answer = self._send("POST", f"async-apply/{call.task}", document)
        if answer.status_code == 404:
            raise Refused("unknown_task", "task")
        return str(answer.raise_for_status().json()["task-id"])

    def unknown(self, job_id: str) -> None:
        raise AssertionError("Flower tells at once")

    def cancel(self, job_id: str) -> None:
        self._send("POST", f"revoke/{job_id}").raise_for_status()

    def result(self, job_id: str) -> Any:
        def ended() -> Any:
            told = self._send("GET", f"result/{job_id}").json()
            return told if told["state"] == "SUCCESS" else None

        return eventually(ended, 30, what=f"Flower telling the result of {job_id}")["result"]


DOORS = {kind.name: kind for kind in (Http, Python, Sql, Stream, Command, PlainCelery, Node, Flower)}


def run(*command: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program of `programs_path`, and return how it ended."""
    path = programs_path()
    found = shutil.which(command[0], path=path)
    assert found, f"this suite needs {command[0]}"
    return subprocess.run([found, *command[1:]], cwd=cwd, env={**os.environ, "PATH": path, **(env or {})}, text=True,
                          capture_output=True, timeout=60, check=False)  # fmt: skip
