"""What to say of a name that is nearly right."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` with the names most like this one, or a list of all when they are few, or nothing."""
    names = sorted(known)
    # By its last part as well: people leave out the module.
    last = name.rpartition(".")[2]
    close = get_close_matches(name, names, n=3) or [full for full in names if full.rpartition(".")[2] == last][:3]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; known: {', '.join(names)}" if 0 < len(names) <= 8 else ""
