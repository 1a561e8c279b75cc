"""One thing that is looked for: how bad it is, why it matters, how to mend it; and what was found of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from worker.doctor.site import Site


class Severity(IntEnum):
    """How bad a finding is."""

    #: Worth knowing; nothing is at risk.
    NOTICE = 1
    #: Something works badly, or will.
    WARNING = 2
    #: Jobs can be lost, run twice or not run at all, or strangers can get in.
    CRITICAL = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Check:
    """One thing that is looked for. `look` yields a line for each case of it, and `fix` says what it did."""

    name: str
    severity: Severity
    why: str
    mend: str
    look: Callable[[Site], Iterable[str]]
    #: Only what can do no harm whenever it runs, and does not come undone by itself.
    fix: Callable[[Site], str] | None = None


@dataclass(frozen=True)
class Finding:
    """A case of what was looked for."""

    check: str
    severity: Severity
    found: str
    why: str
    mend: str
    #: Whether `holdfast doctor --fix` mends it.
    fixable: bool

    @classmethod
    def of(cls, check: Check, found: str) -> Finding:
        """Return what a check found."""
        return cls(check.name, check.severity, found, check.why, check.mend, check.fix is not None)
