"""Acting on many jobs: by ids, or by a filter after a count and a question, with a progress bar and an account at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import typer

from worker.cli.exits import ExitCode, code_of
from worker.cli.output import emit, error_console, note
from worker.errors import HoldfastError, InvalidJob, JobNotFound

if TYPE_CHECKING:
    from worker.ledger.manage import Filter

#: Jobs one command acts on; the next run takes the next ones. It bounds the memory for their ids.
_MOST = 100_000
#: Refusals told one by one; the rest is counted.
_TOLD = 10


@dataclass
class Bulk:
    """One deed for many jobs. `deed` returns what was done with a job, or raises `InvalidJob` or `JobNotFound`."""

    verb: str
    deed: Callable[[str], str]
    living: bool
    #: The states in which the deed makes sense, and those meant when none is given (all of them unless told).
    states: Sequence[str]
    default: Sequence[str] | None = None
    done: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[str, HoldfastError] = field(default_factory=dict)

    def run(self, ids: list[str] | None, which: Filter, *, yes: bool, as_json: bool) -> None:
        """Do it to the jobs that are meant and give account; exits with 1 or 5 if some were refused or not found."""
        for job_id in self._track(self._chosen(ids, which, yes=yes)):
            try:
                self.done.setdefault(self.deed(job_id), []).append(job_id)
            except (InvalidJob, JobNotFound) as exc:
                self.refused[job_id] = exc
        self._account(as_json)
        if self.refused:
            raise typer.Exit(max(ExitCode.NO if isinstance(exc, InvalidJob) else code_of(exc) for exc in self.refused.values()))

    def _chosen(self, ids: list[str] | None, which: Filter, *, yes: bool) -> list[str]:
        from worker.cli.selection import is_empty

        if ids:
            if not is_empty(which):
                raise ValueError("give either ids or filters, not both")
            return list(dict.fromkeys(ids))
        if is_empty(which):
            raise ValueError(f"which jobs to {self.verb}? give their ids, or a filter such as --task or --since")
        if wrong := [state for state in which.states or () if state not in self.states]:
            raise ValueError(f"--state: a job that is {wrong[0]} cannot be chosen here, only {', '.join(self.states)}")
        found = self._found(replace(which, states=which.states or list(self.default or self.states)))
        self._confirm(len(found), yes)
        return found[:_MOST]

    def _found(self, which: Filter) -> list[str]:
        from worker.db import statement
        from worker.ledger import manage

        with statement() as conn:
            return manage.select_ids(conn, which, living=self.living, limit=_MOST + 1)

    def _confirm(self, count: int, yes: bool) -> None:
        if count == 0 or yes:
            return
        jobs = f"{count:,} job{'s' if count > 1 else ''}" if count <= _MOST else f"more than {_MOST:,} jobs"
        first = f", the first {_MOST:,} now" if count > _MOST else ""
        if not sys.stdin.isatty():
            raise ValueError(f"{jobs} match; add --yes to {self.verb} them{first}")
        if not typer.confirm(f"{self.verb} {jobs}{first}?", err=True):
            raise typer.Exit(ExitCode.NO)

    def _track(self, ids: list[str]) -> Sequence[str]:
        from rich.progress import track

        console = error_console()
        quiet = len(ids) < 2 or not console.is_terminal
        return track(ids, self.verb, console=console, transient=True, disable=quiet)  # type: ignore[return-value]

    def _account(self, as_json: bool) -> None:
        if as_json:
            emit({"done": self.done, "refused": {job_id: str(exc) for job_id, exc in self.refused.items()}})
        else:
            for what, ids in self.done.items():
                print(f"{what}: {ids[0] if len(ids) == 1 else f'{len(ids):,} jobs'}")
        for exc in list(self.refused.values())[:_TOLD]:
            note(str(exc))
        if len(self.refused) > _TOLD:
            note(f"and {len(self.refused) - _TOLD:,} more were refused")
        if not self.done and not self.refused:
            note("no job matches")
