"""What names and lives of locks may be, and who a holder is."""

from __future__ import annotations

import math
import os
import secrets
import socket
from functools import lru_cache

from worker.errors import InvalidLock

#: Characters of a name: it stands whole in a key and in each line of the queue.
_LONGEST = 255
#: Seconds a lease may last. Less than a hundredth of a second is over before its answer has come; a dead holder's lease of more
#: than a day is a lock that nobody can get.
_SHORTEST_S, _LONGEST_S = 0.01, 86_400.0


def checked_name(name: str) -> str:
    """Return the name. Raises `InvalidLock`."""
    if not _is_line(name):
        raise InvalidLock(f"name: {repr(name)[:60]} is not a line of 1 to {_LONGEST} printable characters")
    return name


def _is_line(text: object) -> bool:
    return isinstance(text, str) and 1 <= len(text) <= _LONGEST and text.isprintable()


def checked_ttl_ms(ttl_s: float) -> int:
    """Return the life of a lease in milliseconds. Raises `InvalidLock`."""
    if not _is_number(ttl_s) or not _SHORTEST_S <= ttl_s <= _LONGEST_S:
        raise InvalidLock(f"ttl_s: {ttl_s!r} is not a number of seconds from {_SHORTEST_S:g} to {_LONGEST_S:,.0f}")
    return round(ttl_s * 1000)


def checked_wait_s(wait_s: float) -> float:
    """Return the longest time to wait. Raises `InvalidLock`."""
    if not _is_number(wait_s) or not 0 <= wait_s <= _LONGEST_S:
        raise InvalidLock(f"wait_s: {wait_s!r} is not a number of seconds from 0 to {_LONGEST_S:,.0f}")
    return float(wait_s)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def checked_holder(holder: str) -> str:
    """Return who holds, for people to read; this process where nobody is named. Raises `InvalidLock`."""
    if not holder:
        return _this_process()
    if not _is_line(holder) or " " in holder:
        raise InvalidLock(f"holder: {repr(holder)[:60]} is not a line of 1 to {_LONGEST} printable characters without spaces")
    return holder


def new_token(holder: str) -> str:
    """Return a token that nobody else has, with the holder in it."""
    return f"{holder}:{secrets.token_hex(8)}"


def holder_of(token: str) -> str:
    """Return the holder whose token this is."""
    return token.rpartition(":")[0]


@lru_cache(maxsize=1)
def _this_process() -> str:
    return f"{''.join(socket.gethostname().split())}:{os.getpid()}"


os.register_at_fork(after_in_child=_this_process.cache_clear)
