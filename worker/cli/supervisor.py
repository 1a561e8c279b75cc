"""Running several programs in one terminal: their lines prefixed and coloured, restarted when they die, stopped cleanly.

One thread does it all: children are forked with code of ours in between (`die_with_parent`), which is sound only without threads.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from worker.cli.exits import ExitCode
from worker.cli.output import error_console

#: Seconds between two looks at the children; their lines are printed at once.
_LOOK_S = 0.2
#: Seconds before a dead child starts again; doubled with each death, up to the second number.
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
#: A child that lived for so many seconds was well: its deaths are counted anew.
_STEADY_S = 20.0
#: Seconds a child gets beyond the grace of its jobs, and after it was told to stop without one.
_BEYOND_S = 5.0
#: A line longer than this is printed in parts, so that one without end takes no memory.
_LONGEST_LINE = 65_536
#: ANSI colours that are readable on dark and on light.
_COLOURS = (36, 33, 35, 32, 34, 96, 93, 95)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Spec:
    """A program to keep running."""

    name: str
    command: Sequence[str]
    #: The signal that means: stop now, without waiting for jobs.
    hard: signal.Signals = signal.SIGTERM
    env: Mapping[str, str] = field(default_factory=dict)


def pause_s(deaths: int) -> float:
    """Return how long to wait before the start after so many deaths in a row."""
    return min(_PAUSE_S * 2.0 ** min(deaths - 1, 10), _LONGEST_PAUSE_S)


class Child:
    """One program, from start to start."""

    def __init__(self, spec: Spec, supervisor: Supervisor, prefix: str) -> None:
        self.spec, self._supervisor, self._prefix = spec, supervisor, prefix
        self._popen: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._started = 0.0
        self.deaths = 0
        self.due = 0.0
        self.was_steady = False

    @property
    def alive(self) -> bool:
        return self._popen is not None

    def start(self) -> None:
        self._popen = subprocess.Popen(
            self.spec.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **self.spec.env},
            # A session of its own: Ctrl-C goes to the supervisor alone, which asks each once.
            start_new_session=True, preexec_fn=die_with_parent(os.getpid()),
        )  # fmt: skip
        self._started = time.monotonic()
        assert self._popen.stdout is not None
        os.set_blocking(self._popen.stdout.fileno(), False)
        self._supervisor.selector.register(self._popen.stdout, selectors.EVENT_READ, self)
        self._supervisor.guard(f"+{self._popen.pid}")

    def pump(self) -> bool:
        """Print the lines it has written; tell whether there may be more."""
        assert self._popen is not None
        assert self._popen.stdout is not None
        try:
            read = os.read(self._popen.stdout.fileno(), _LONGEST_LINE)
        except BlockingIOError:
            return False
        *lines, self._rest = (self._rest + read).split(b"\n")
        if len(self._rest) >= _LONGEST_LINE or not read:
            lines, self._rest = [*lines, *([self._rest] if self._rest else [])], b""
        for line in lines:
            self._supervisor.print(self._prefix, line.decode(errors="replace"))
        if not read:
            self._supervisor.selector.unregister(self._popen.stdout)
        return bool(read)

    def send(self, what: signal.Signals) -> None:
        """Send a signal to the program itself; its own children are its business."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.send_signal(what)

    def kill(self) -> None:
        """Kill it with all it has started."""
        if self._popen is not None:
            try:
                os.killpg(self._popen.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass

    def reap(self) -> int | None:
        """Return its exit code if it has ended, after printing its last words and killing what it left behind."""
        if self._popen is None or self._popen.poll() is None:
            return None
        self.kill()
        popen, stdout = self._popen, self._popen.stdout
        assert stdout is not None
        while stdout in self._supervisor.selector.get_map() and self.pump():
            pass
        if stdout in self._supervisor.selector.get_map():
            self._supervisor.selector.unregister(stdout)
        stdout.close()
        self._supervisor.guard(f"-{popen.pid}")
        self._popen = None
        lived = time.monotonic() - self._started >= _STEADY_S
        self.was_steady |= lived
        self.deaths = 1 if lived else self.deaths + 1
        self.due = time.monotonic() + pause_s(self.deaths)
        return int(popen.returncode)


class Supervisor:
    """Keeps programs running until it is asked to stop: once for a warm stop, twice for a hard one, three times to kill.

    `tend`, if given, is called every second.

    **Guarantee:** a program does not outlive its supervisor, also not one that was killed.
    """

    def __init__(
        self, specs: Sequence[Spec], *, tend: Callable[[], None] | None = None, guarded: bool = sys.platform != "linux"
    ) -> None:
        from worker.settings import read_settings

        console = error_console()
        self._coloured = console.is_terminal and not console.no_color
        self._width = max(len(spec.name) for spec in [*specs, Spec("holdfast", [])])
        self._own = self._prefix("holdfast", 1)
        self.selector = selectors.DefaultSelector()
        self._children = [Child(spec, self, self._prefix(spec.name, _COLOURS[i % len(_COLOURS)])) for i, spec in enumerate(specs)]
        self._grace_s = read_settings().shutdown_grace_s + _BEYOND_S
        self._tend, self._tended = tend, 0.0
        self._asked = self._stage = 0
        self._deadline = float("inf")
        self._code: int = ExitCode.OK
        self._guard = _start_guard() if guarded else None

    def run(self) -> int:
        """Run until all have ended after a stop; return the exit code."""
        before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        try:
            for child in self._children:
                child.start()
            while not self._stage or any(child.alive for child in self._children):
                self._round()
        finally:
            for child in self._children:
                child.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._guard is not None and self._guard.stdin is not None:
                self._guard.stdin.close()
        return self._code

    def say(self, text: str) -> None:
        """Print a line of the supervisor's own."""
        self.print(self._own, text)

    def print(self, prefix: str, line: str) -> None:
        try:
            sys.stderr.write(f"{prefix}{line}\n")
            sys.stderr.flush()
        except BrokenPipeError:  # nobody reads any more; the programs go on
            pass

    def guard(self, line: str) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.write(f"{line}\n".encode())
            self._guard.stdin.flush()

    def _prefix(self, name: str, colour: int) -> str:
        text = f"{name:<{self._width}} | "
        return f"\x1b[{colour}m{text}\x1b[0m" if self._coloured else text

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked += 1

    def _round(self) -> None:
        for key, _ in self.selector.select(_LOOK_S):
            key.data.pump()
        self._stop_further()
        now = time.monotonic()
        for child in self._children:
            if (code := child.reap()) is not None:
                self._lost(child, code)
            elif not child.alive and not self._stage and now >= child.due:
                child.start()
        if self._tend is not None and not self._stage and now - self._tended >= 1.0:
            self._tended = now
            self._tend()

    def _lost(self, child: Child, code: int) -> None:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        if self._stage:
            self.say(f"{child.spec.name} has stopped" if code in (0, -signal.SIGTERM) else f"{child.spec.name} {how}")
        elif code == ExitCode.USAGE and not child.was_steady:
            self.say(f"{child.spec.name} {how}: no restart mends bad input or settings")
            self._code, self._asked = ExitCode.USAGE, 1
        else:
            self.say(f"{child.spec.name} {how}; it starts again in {pause_s(child.deaths):g} s")

    def _stop_further(self) -> None:
        """Go on to the next stage of the stop when it was asked for or is due."""
        if self._stage < min(self._asked, 3) or (self._stage and time.monotonic() > self._deadline):
            self._stage += 1
            self._deadline = time.monotonic() + (self._grace_s if self._stage == 1 else _BEYOND_S)
            waits = f"running jobs get up to {self._grace_s:g} s; again to stop at once"
            self.say({1: f"stopping; {waits}", 2: "stopping at once"}.get(self._stage, "killing what is left"))
            for child in self._children:
                if self._stage >= 3:
                    child.kill()
                else:
                    child.send(signal.SIGTERM if self._stage == 1 else child.spec.hard)


def die_with_parent(parent: int) -> Callable[[], None] | None:
    """Return what a child runs before its program so that the kernel kills it with its parent; None where no kernel does."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # before the fork: a child may not load libraries

    def prepare() -> None:
        libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before the kernel knew
            os._exit(1)

    return prepare


def _start_guard() -> subprocess.Popen[bytes]:
    program = Path(__file__).with_name("guard.py")
    return subprocess.Popen([sys.executable, "-I", program], stdin=subprocess.PIPE, start_new_session=True)
