"""Going through all checks: what each found, and which could not be looked at because a server is away or does not allow it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psycopg

from worker.doctor import clients, clocks, fleet, keys, postgres, queues, security, servers, streams
from worker.doctor.check import Check, Finding, Severity
from worker.doctor.site import Server, Site, visit
from worker.errors import HoldfastError, LedgerUnavailable, StoreRefused, StoreUnavailable


@dataclass(frozen=True)
class Report:
    """What was found, the worst first, and the checks that could not be made, with the reason of each."""

    findings: Sequence[Finding]
    skipped: dict[str, str]

    @property
    def worst(self) -> Severity | None:
        """How bad the worst finding is; None when nothing was found."""
        return max((finding.severity for finding in self.findings), default=None)

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        findings = [{**asdict(finding), "severity": str(finding.severity)} for finding in self.findings]
        return {"worst": str(self.worst) if self.worst else None, "findings": findings, "skipped": self.skipped}


def _away(site: Site) -> Iterator[str]:
    for server in site.servers:
        if why := _silence_of(server):
            yield why
    try:
        with site.ledger() as conn:
            conn.execute("SELECT 1")
    except LedgerUnavailable as exc:
        yield str(exc)


def _silence_of(server: Server) -> str:
    try:
        server.ask("PING")
    except StoreRefused:
        return ""
    except StoreUnavailable as exc:
        return str(exc)
    return ""


CHECKS: tuple[Check, ...] = (
    Check(
        "servers.away", Severity.CRITICAL,
        "without Postgres nothing is accepted; without Redis jobs wait in Postgres",
        "start the server, or mend the way to it",
        _away,
    ),
    *postgres.CHECKS, *servers.CHECKS, *queues.CHECKS, *fleet.CHECKS, *streams.CHECKS, *keys.CHECKS, *clocks.CHECKS,
    *clients.CHECKS, *security.CHECKS,
)  # fmt: skip


def examine(app: Any, checks: Sequence[Check] = CHECKS) -> Report:
    """Look at everything and return what was found; changes nothing, and raises nothing for a server that is away.

        report = examine(app)
        print(report.worst, [finding.found for finding in report.findings])

    `app` is the Celery application. Takes about a second for each 300,000 keys, in steps of about a millisecond for the server.
    """
    findings: list[Finding] = []
    skipped: dict[str, str] = {}
    with visit(app) as site:
        for check in checks:
            try:
                findings += [Finding.of(check, line) for line in check.look(site)]
            except _UNSEEN as exc:
                skipped[check.name] = _one_line(exc)
    return Report(sorted(findings, key=lambda finding: -finding.severity), skipped)


def mend(app: Any, findings: Sequence[Finding]) -> dict[str, str]:
    """Mend what can be mended without harm, and return what was done, or why not, by the name of the check."""
    done: dict[str, str] = {}
    with visit(app) as site:
        for check in CHECKS:
            if check.fix is not None and any(finding.check == check.name for finding in findings):
                try:
                    done[check.name] = check.fix(site)
                except _UNSEEN as exc:
                    done[check.name] = f"could not be mended: {_one_line(exc)}"
    return done


#: What says that something cannot be looked at: a server is away, or does not let us.
_UNSEEN = (HoldfastError, psycopg.errors.InsufficientPrivilege)


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split())
