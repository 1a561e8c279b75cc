"""Looking for what is wrong with the servers, the ledger and how they are set up."""

from worker.doctor.check import Check, Finding, Severity
from worker.doctor.examine import CHECKS, Report, examine, mend

__all__ = [
    # asking
    "examine", "mend", "Report",
    # what is looked for, and what is found
    "CHECKS", "Check", "Finding", "Severity",
]  # fmt: skip
