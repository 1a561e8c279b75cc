"""The body of every measured no-op task: it counts itself in a small file of its process, which costs about a microsecond.

Beside it, for latencies: a task that leaves the moment of its start.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path

#: Calls, and the moments of the first and the last one.
_RECORD = struct.Struct("=Qdd")

#: A job's number and the moment it started.
_STAMP = struct.Struct("=Qd")

_lock = threading.Lock()
_own: tuple[int, mmap.mmap] | None = None


def tick() -> float:
    """Count one call in this process and return the moment it was made."""
    global _own
    now = time.time()
    with _lock:
        if _own is None or _own[0] != os.getpid():
            _own = os.getpid(), _open()
        record = _own[1]
        calls, first, _ = _RECORD.unpack_from(record)
        _RECORD.pack_into(record, 0, calls + 1, first or now, now)
    return now


def _open() -> mmap.mmap:
    path = _folder() / f"{os.getpid()}.calls"
    path.write_bytes(bytes(_RECORD.size))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), _RECORD.size)


def stamp(job: int) -> None:
    """Leave the moment at which this job started."""
    now = time.time()
    with (_folder() / f"{os.getpid()}.stamps").open("ab") as file:
        file.write(_STAMP.pack(job, now))


def starts() -> dict[int, float]:
    """Return the moments at which jobs started, by number."""
    data = b"".join(path.read_bytes() for path in _folder().glob("*.stamps"))
    return dict(_STAMP.iter_unpack(data[: len(data) // _STAMP.size * _STAMP.size]))


def _folder() -> Path:
    return Path(os.environ["BENCH_METER"])


@dataclass(frozen=True)
class Reading:
    """What all processes have counted: calls, and the moments of the first and the last one."""

    calls: int
    first: float
    last: float

    @property
    def rate(self) -> float:
        """Calls a second between the first and the last one."""
        return (self.calls - 1) / (self.last - self.first)


def read(folder: Path) -> Reading:
    """Add up what the processes that were given this folder have counted."""
    records = [_RECORD.unpack(data) for path in folder.glob("*.calls") if len(data := path.read_bytes()) == _RECORD.size]
    records = [record for record in records if record[0]]
    if not records:
        return Reading(0, 0.0, 0.0)
    return Reading(sum(r[0] for r in records), min(r[1] for r in records), max(r[2] for r in records))
