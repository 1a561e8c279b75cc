"""What a running job tells and is told: its progress, and the wish that it stop."""

from __future__ import annotations

from typing import Any

import psycopg

from worker.ledger.claim import Claim
from worker.ledger.message import encode

_WRITE = "UPDATE jobs SET progress = %s::jsonb WHERE id = %s AND claim_token = %s"
_CANCELLED = "SELECT cancel_requested FROM jobs WHERE id = %s AND claim_token = %s"


def write(conn: psycopg.Connection[Any], claim: Claim, told: dict[str, Any]) -> None:
    """Write the progress of the attempt that owns the claim; that of any other is ignored."""
    conn.execute(_WRITE, (encode(told).decode(), claim.job_id, claim.token))


def is_cancelled(conn: psycopg.Connection[Any], claim: Claim) -> bool:
    """Tell whether the job is to stop, or is no longer this attempt's."""
    row = conn.execute(_CANCELLED, (claim.job_id, claim.token)).fetchone()
    return row is None or bool(row[0])
