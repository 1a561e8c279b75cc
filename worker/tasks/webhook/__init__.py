"""Telling others of a job's end by HTTP, for `webhook.deliver`; it knows nothing of Celery."""

from worker.tasks.webhook.posting import post
from worker.tasks.webhook.signing import secrets_for, signed_headers

__all__ = ["post", "secrets_for", "signed_headers"]
