"""Holdfast: a Celery application whose every accepted job is a row in Postgres before it is a message in Redis."""
