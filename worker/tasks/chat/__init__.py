"""Metered calls of a language model, for `llm.chat`; it knows nothing of Celery. Its client is loaded with the first call."""

from worker.tasks.chat.request import Chat, prepare

__all__ = ["Chat", "prepare"]
