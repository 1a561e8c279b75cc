"""The exit codes of `holdfast`, and which failure ends with which."""

from __future__ import annotations

from enum import IntEnum

from worker import errors


class ExitCode(IntEnum):
    """What a command's exit code tells."""

    OK = 0
    NO = 1
    USAGE = 2
    POSTGRES_AWAY = 3
    REDIS_AWAY = 4
    NOT_FOUND = 5
    CRITICAL = 6
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.OK: "it was done",
    ExitCode.NO: "the answer is no, or it failed: a job did not succeed, a job refused, a schema to migrate, a warning of the "
    "doctor",
    ExitCode.USAGE: "bad input or settings; nothing was done",
    ExitCode.POSTGRES_AWAY: "Postgres did not answer",
    ExitCode.REDIS_AWAY: "Redis did not answer",
    ExitCode.NOT_FOUND: "no such job, schedule, limit policy, flag, caller, operator or dead letter",
    ExitCode.CRITICAL: "the doctor found something by which jobs are lost, run twice or do not run, or strangers get in",
    ExitCode.INTERRUPTED: "interrupted with Ctrl-C",
}

#: The first that fits decides, so a class stands before its parent.
_CODES: tuple[tuple[type[BaseException], ExitCode], ...] = (
    (errors.SchemaOutdated, ExitCode.NO),
    (errors.LedgerUnavailable, ExitCode.POSTGRES_AWAY),
    (errors.StoreUnavailable, ExitCode.REDIS_AWAY),
    (errors.JobNotFound, ExitCode.NOT_FOUND),
    (errors.ScheduleNotFound, ExitCode.NOT_FOUND),
    (errors.LimitNotFound, ExitCode.NOT_FOUND),
    (errors.DeadLetterNotFound, ExitCode.NOT_FOUND),
    (errors.FlagNotFound, ExitCode.NOT_FOUND),
    (errors.CallerNotFound, ExitCode.NOT_FOUND),
    (errors.OperatorNotFound, ExitCode.NOT_FOUND),
    (errors.SettingsError, ExitCode.USAGE),
    (ValueError, ExitCode.USAGE),
)


def code_of(exc: BaseException) -> ExitCode:
    """Return the exit code for a failure."""
    return next((code for kind, code in _CODES if isinstance(exc, kind)), ExitCode.NO)


def epilog() -> str:
    """Return the table of exit codes for the end of a help page; a paragraph a line, for help pages join lines."""
    return "Exit codes:\n\n" + "\n\n".join(f"{code.value}  {meaning}" for code, meaning in MEANINGS.items())
