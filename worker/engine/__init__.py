"""Where Celery meets the ledger: how jobs are published, taken, run and ended."""
