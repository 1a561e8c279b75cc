"""Signing a callback by Standard Webhooks, with every secret that holds, so that receivers change theirs when they like."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from standardwebhooks import Webhook

from worker.errors import SettingsError


def secrets_for(caller: str | None, secrets: Sequence[str]) -> list[str]:
    """Return the secrets that sign for a caller: its own, or else those of everybody. Raises `SettingsError` for none."""
    of = [(whose, secret) for whose, _, secret in (text.rpartition(":") for text in secrets)]
    found = [secret for whose, secret in of if whose and whose == caller] or [secret for whose, secret in of if not whose]
    if not found:
        raise SettingsError("HOLDFAST_WEBHOOK_SECRETS: there is no secret to sign the callback with")
    return found


def signed_headers(message_id: str, body: str, secrets: Sequence[str], now: datetime) -> dict[str, str]:
    """Return the headers of a signed message: its id, by which receivers know a repetition, the moment, and the signatures.

    `now` is in UTC.
    """
    signatures = [Webhook(secret).sign(message_id, now, body) for secret in secrets]
    return {
        "webhook-id": message_id, "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": " ".join(signatures),
    }  # fmt: skip
