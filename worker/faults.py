"""Named points at which chaos tests make a process die, stop or fail; free when none is armed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

#: Every point, in the order a job passes them; then those of whatever changes what is cached, of the intake and of the forwarder.
#: A point stands in the code once, as `faults.point(NAME)`.
AFTER_INSERT = "after-insert"
AFTER_COMMIT = "after-commit"
AFTER_PUBLISH = "after-publish"
AFTER_LOCK = "after-lock"
AFTER_CLAIM = "after-claim"
BEFORE_SETTLE = "before-settle"
AFTER_SETTLE = "after-settle"
BEFORE_INVALIDATE = "before-invalidate"
AFTER_READ = "after-read"
BEFORE_ACK = "before-ack"
AFTER_ACK = "after-ack"
BEFORE_REMEMBER = "before-remember"
POINTS = (
    AFTER_INSERT, AFTER_COMMIT, AFTER_PUBLISH, AFTER_LOCK, AFTER_CLAIM, BEFORE_SETTLE, AFTER_SETTLE, BEFORE_INVALIDATE,
    AFTER_READ, BEFORE_ACK, AFTER_ACK, BEFORE_REMEMBER,
)  # fmt: skip


class InjectedFault(Exception):
    """The failure that an armed `raise` fault raises."""


_ACTIONS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda: time.sleep(2),
    "raise": lambda: (_ for _ in ()).throw(InjectedFault()),
}
_armed: dict[str, tuple[Callable[[], None], int]] = {}


def arm(spec: str) -> None:
    """Arm the points of `"name:action[:nth]"`, separated by commas; `nth` is the passage on which it fires, 1 by default.

    Raises `ValueError` for an unknown point or action.
    """
    _armed.clear()
    for part in filter(None, (p.strip() for p in spec.split(","))):
        name, _, rest = part.partition(":")
        action, _, nth = rest.partition(":")
        if name not in POINTS or action not in _ACTIONS or not (nth or "1").isdigit():
            raise ValueError(f"fault {part!r}: points are {', '.join(POINTS)}; actions are {', '.join(_ACTIONS)}")
        _armed[name] = (_ACTIONS[action], int(nth or 1))


def point(name: str) -> None:
    """Pass a named point; does nothing unless it is armed and this is the passage on which it fires."""
    if _armed and name in _armed:
        action, left = _armed[name]
        _armed[name] = (action, left - 1)
        if left == 1:
            action()
