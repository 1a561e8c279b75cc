"""The files of a stack's folder: whose they are, and the locks on them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def open_owned(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Open a file for the owner of its folder, as all files here are; a link, which that owner may set, is not followed."""
    fd = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)
    return fd


def write(path: Path, text: str) -> None:
    """Replace a file at once."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with open(open_owned(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
        file.write(text)
    new.replace(path)


def try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def tail(path: Path, lines: int = 20) -> str:
    try:
        return f"the end of {path}:\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
