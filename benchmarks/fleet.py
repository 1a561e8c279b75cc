"""Processes that get ready, begin at one moment, and tell as JSON on their last line what they saw."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tests.harness import ROOT

#: Seconds between the word and the moment at which all begin: time for it to reach everybody.
NOTICE_S = 0.2
#: Seconds after which a process that does not come to its end is given up.
PATIENCE_S = 180.0


class Member:
    """One process of a fleet, seen from outside: a Python program that calls `ready` and prints JSON in the end."""

    def __init__(self, *args: str, env: Mapping[str, str] | None = None) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, *args], cwd=ROOT, env={**os.environ, **(env or {})}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def await_line(self, line: str) -> None:
        """Wait until it says this. Raises `RuntimeError` when it ends before."""
        assert self._popen.stdout is not None
        for said in self._popen.stdout:
            if said.strip() == line:
                return
        raise RuntimeError(f"{self._popen.args!r}: ended before it said {line!r}")

    def begin(self, at: float) -> None:
        """Let it begin at a moment of the wall clock."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{at}\n")
        self._popen.stdin.flush()

    def told(self, patience_s: float = PATIENCE_S) -> Any:
        """Return what it told, when it has ended; None when it does not end. Raises `RuntimeError` when it failed."""
        try:
            said, _ = self._popen.communicate(timeout=patience_s)
        except subprocess.TimeoutExpired:
            return None
        if self._popen.returncode:
            raise RuntimeError(f"{self._popen.args!r}: ended with {self._popen.returncode}")
        return json.loads(said.splitlines()[-1])

    def kill(self) -> None:
        """Kill -9."""
        self._popen.kill()
        self._popen.wait()


@contextmanager
def members(commands: Sequence[Sequence[str]], env: Mapping[str, str] | None = None) -> Iterator[list[Member]]:
    """Start processes, wait until each is ready, and leave none behind."""
    started = [Member(*command, env=env) for command in commands]
    try:
        for member in started:
            member.await_line("ready")
        yield started
    finally:
        for member in started:
            member.kill()


def together(commands: Sequence[Sequence[str]], env: Mapping[str, str] | None = None) -> list[Any]:
    """Let processes begin at one moment and return what each told."""
    with members(commands, env) as started:
        at = time.time() + NOTICE_S
        for member in started:
            member.begin(at)
        return [member.told() for member in started]


def ready() -> float:
    """Say, from inside, that all is prepared; return the moment to begin at, as soon as it is known."""
    print("ready", flush=True)
    return float(sys.stdin.readline())
