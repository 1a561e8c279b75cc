"""The life of a job: accept, publish, claim, settle, dispatch, rescue. The only place that writes `jobs.state`."""

from worker.ledger.accept import accept, enqueue_in
from worker.ledger.message import NewJob

__all__ = ["NewJob", "accept", "enqueue_in"]
