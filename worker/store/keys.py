"""Every Redis key Holdfast writes: its type, its role, its life, and what its feature does when Redis is away."""

from __future__ import annotations

from dataclasses import dataclass

#: What Celery's Redis transport puts between a queue's name and its priority bucket.
_SEP = "\x06\x16"
#: Celery's priority buckets on Redis; 0 is served first.
PRIORITY_STEPS = (0, 3, 6, 9)


@dataclass(frozen=True)
class KeyKind:
    """One kind of key."""

    pattern: str
    role: str
    type: str
    #: In words, for people; `none` only where losing the key is itself the signal.
    life: str
    #: What the feature does when Redis is away.
    policy: str


KINDS = (
    KeyKind("<queue>", "coordination", "list", "until consumed; emptied by workers, bounded by the window",
            "accepts go to Postgres alone; the relay sends them later"),
    KeyKind("holdfast:epoch", "coordination", "string", "none: its absence tells that the broker lost its memory",
            "the relay waits"),
    KeyKind("holdfast:lock:job:{<id>}", "coordination", "string", "the setting lease_s, renewed while the job runs",
            "open: the claim in Postgres decides alone"),
    KeyKind("_kombu.binding.<exchange>", "coordination", "set", "none: kombu's own, a line for each queue and worker",
            "remote control and events wait; jobs use no exchange"),
    KeyKind("_kombu.binding_permanent.<exchange>", "coordination", "set", "none: kombu's own, a line for each queue", "as above"),
    KeyKind("_kombu.binding_deadlines", "coordination", "zset", "none: kombu's own, a line for each queue that expires",
            "as above"),
    KeyKind("<id>.reply.celery.pidbox", "coordination", "list", "seconds: answers to remote control, by kombu",
            "remote control goes unanswered"),
    KeyKind("holdfast:cache:{<key>}", "cache", "string", "the entry's ttl, and for as long as it may be served stale",
            "open: callers load for themselves, a few at a time in each process"),
    KeyKind("holdfast:cache:{<key>}:lease", "cache", "string",
            "the region's lease_s, renewed while the loader runs; a failed load's back-off and a minute", "open: as above"),
    KeyKind("holdfast:cache:{<key>}:version", "cache", "string", "an hour, or the life of the entry if longer", "open: as above"),
    KeyKind("holdfast:cache:tag:{<tag>}", "cache", "string", "a day, or twice the longest life of an entry with this tag",
            "open: as above; an entry whose tag is gone is a miss"),
    KeyKind("holdfast:cache:hot", "cache", "zset", "a day after the last read that was counted", "open: reads are not ranked"),
    KeyKind("celery-task-meta-<id>", "cache", "string", "the setting result_ttl_s", "open: results are read from Postgres"),
)  # fmt: skip


def bucket(priority: int) -> int:
    """Return the Redis bucket of a priority from 0 (first) to 9."""
    return max(step for step in PRIORITY_STEPS if step <= priority)


def queue(name: str, priority: int = 0) -> str:
    """Return the list on which workers wait for this queue and priority."""
    step = bucket(priority)
    return f"{name}{_SEP}{step}" if step else name


def queue_lists(name: str) -> tuple[str, ...]:
    """Return all lists of a queue, the one served first first."""
    return tuple(queue(name, step) for step in PRIORITY_STEPS)


def epoch() -> str:
    """Return the key whose random value marks this life of the broker."""
    return "holdfast:epoch"


def job_lock(job_id: str) -> str:
    """Return the lock that a running job holds."""
    return f"holdfast:lock:job:{{{job_id}}}"


def result(job_id: str) -> str:
    """Return the key, and the channel, of a job's result: the one Celery's own clients know."""
    return f"celery-task-meta-{job_id}"


def cache_entry(key: str) -> str:
    """Return the entry of a cached value, and the channel of those who wait for it."""
    return f"holdfast:cache:{{{key}}}"


def cache_lease(key: str) -> str:
    """Return the lease under which one caller loads a cached value, or the marker that its last load failed."""
    return f"holdfast:cache:{{{key}}}:lease"


def cache_version(key: str) -> str:
    """Return where the newest version written of a cached value stands."""
    return f"holdfast:cache:{{{key}}}:version"


def cache_tag(tag: str) -> str:
    """Return the version key of a tag."""
    return f"holdfast:cache:tag:{{{tag}}}"


def cache_hot() -> str:
    """Return the ranking of reads."""
    return "holdfast:cache:hot"


def cache_drops() -> str:
    """Return the channel on which processes hear what to drop from their memory."""
    return "holdfast:cache:drops"
