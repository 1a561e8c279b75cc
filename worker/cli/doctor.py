"""`holdfast doctor`: what is wrong with the servers, the ledger and how they are set up, why it matters and how to mend it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli import options
from worker.cli.exits import ExitCode
from worker.cli.output import emit, log_to_stderr, note, record
from worker.cli.registry import load
from worker.cli.services import services

if TYPE_CHECKING:
    from worker.doctor import Finding, Report


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended without harm, then look again.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Look for what is wrong with Postgres, both Redis servers and how they are used; changes nothing without `--fix`.

    Exits with 0 when nothing was found, or only notices; with 1 when the worst is a warning, and with 6 when it is critical. A
    check that a server does not allow is told of and counts as nothing found; a server that is away is critical.
    """
    log_to_stderr()
    with services():
        app = load()
        from worker.doctor import examine, mend

        report = examine(app)
        done = mend(app, report.findings) if fix else {}
        if done:
            report = examine(app)
    if as_json:
        emit({**report.document(), "mended": done})
    else:
        _show(report, done)
    raise typer.Exit(_code(report))


def _show(report: Report, done: dict[str, str]) -> None:
    for check, what in done.items():
        note(f"{check}: {what}")
    for finding in report.findings:
        record(_lines(finding))
        print()
    for check, why in report.skipped.items():
        note(f"{check} could not be looked at: {why}")
    if not report.findings:
        print("nothing was found" if not report.skipped else "nothing was found where it could be looked")


def _lines(finding: Finding) -> list[tuple[str, str]]:
    mend = f"{finding.mend}{' (--fix)' if finding.fixable and '--fix' not in finding.mend else ''}"
    return [(str(finding.severity), f"{finding.found} [{finding.check}]"), ("why", finding.why), ("mend", mend)]


def _code(report: Report) -> ExitCode:
    from worker.doctor import Severity

    codes = {Severity.WARNING: ExitCode.NO, Severity.CRITICAL: ExitCode.CRITICAL}
    return codes.get(report.worst, ExitCode.OK) if report.worst else ExitCode.OK
