"""Whom a server runs as when root starts it."""

from __future__ import annotations

import ctypes
import os
import pwd
import sys
from collections.abc import Callable
from pathlib import Path

from worker.errors import SettingsError

#: Whom servers run as when root starts them in a folder of root; the first that exists.
UNPRIVILEGED = ("postgres", "redis", "nobody")
#: Linux capabilities that lead through folders such as /root: reading and searching, or (in containers) all file access.
CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE = 2, 1


def demotion(folder: Path, program: Path) -> Callable[[], None] | None:
    """Return what a child of root runs to become the owner of the folder; None when this process is not root.

    Where that user cannot pass, as below /root, it keeps the one capability to pass, rather than the folders being opened to all.
    """
    if os.geteuid() != 0:
        return None
    owner = folder.stat()
    passable = all(parent.stat().st_mode & 0o001 for path in (folder, program.resolve()) for parent in path.parents)
    cap = None if passable and program.stat().st_mode & 0o001 else _pass_capability(program)
    libc = ctypes.CDLL(None, use_errno=True)  # before the fork: a child may not load libraries

    def demote() -> None:
        os.setgroups([])
        os.setgid(owner.st_gid)
        if cap is not None:
            libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS: let it outlive setuid
        os.setuid(owner.st_uid)
        if cap is not None:
            header, bit = (ctypes.c_uint32 * 2)(0x20080522, 0), 1 << cap  # capset(2), version 3
            wanted = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)  # effective, permitted, inheritable
            if libc.capset(header, wanted) or libc.prctl(47, 2, cap, 0, 0):  # PR_CAP_AMBIENT_RAISE: let it outlive exec
                raise OSError(ctypes.get_errno(), "capabilities")

    return demote


def _pass_capability(program: Path) -> int | None:
    """Return the least capability that lets a user reach what only root can, or None where there are no capabilities."""
    if sys.platform != "linux":
        return None
    line = next(ln for ln in Path("/proc/self/status").read_text().splitlines() if ln.startswith("CapPrm"))
    may_read = int(line.split()[1], 16) >> CAP_DAC_READ_SEARCH & 1
    return CAP_DAC_READ_SEARCH if may_read and program.stat().st_mode & 0o001 else CAP_DAC_OVERRIDE


def unprivileged() -> tuple[int, int]:
    for name in UNPRIVILEGED:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return user.pw_uid, user.pw_gid
    raise SettingsError(f"Postgres does not run as root, and none of the users {', '.join(UNPRIVILEGED)} exists")
