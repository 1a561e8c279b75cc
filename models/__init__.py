"""What Postgres remembers: the tables of Holdfast as typed SQLAlchemy models."""

from models.attempt import Attempt
from models.audit_entry import AuditEntry
from models.base import Base
from models.cache_outbox import CacheOutbox
from models.caller import Caller
from models.chord import Chord, ChordPart
from models.effect import Effect
from models.flag import Flag, FlagChange
from models.job import Job, JobHistory
from models.job_event import EventReader, JobEvent
from models.job_key import JobKey
from models.job_note import JobNote
from models.limit_policy import LimitPolicy
from models.operator import Operator
from models.queue import Queue
from models.schedule import Schedule
from models.task_type import TaskType
from models.usage import Usage, UsageReservation
from models.worker_node import WorkerNode

__all__ = [
    # the job and its past
    "Job", "JobHistory", "Attempt",
    # what belongs to a job
    "Effect", "JobKey", "JobNote", "Chord", "ChordPart",
    # what happened to jobs
    "JobEvent", "EventReader",
    # the fleet
    "Queue", "Schedule", "TaskType", "WorkerNode",
    # the cache
    "CacheOutbox",
    # limits and what was spent
    "LimitPolicy", "Usage", "UsageReservation",
    # flags
    "Flag", "FlagChange",
    # who may use the HTTP gateway
    "Caller",
    # who may use the console, and what they did
    "Operator", "AuditEntry",
    # for migrations
    "Base",
]  # fmt: skip
