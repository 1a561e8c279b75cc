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

    @property
    def ends(self) -> bool:
        """Tell whether such a key has a time to live: all do but what is bounded otherwise."""
        return not self.life.startswith(("none", "until consumed"))


KINDS = (
    KeyKind("<queue>", "coordination", "list", "until consumed; emptied by workers, bounded by the window",
            "accepts go to Postgres alone; the relay sends them later"),
    KeyKind("holdfast:epoch", "coordination", "string", "none: its absence tells that the broker lost its memory",
            "the relay waits"),
    KeyKind("holdfast:lock:job:{<id>}", "coordination", "string", "the setting lease_s, renewed while the job runs",
            "open: the claim in Postgres decides alone"),
    KeyKind("holdfast:lock:{<name>}", "coordination", "string", "the lock's ttl, renewed while it is held",
            "closed: nobody takes it; its holder learns that it is lost when its ttl is over"),
    KeyKind("holdfast:lock:{<name>}:fence", "coordination", "string", "a day after the lock was last taken",
            "as above; a number that is gone is begun anew above the old ones, by the server's clock"),
    KeyKind("holdfast:lock:{<name>}:queue", "coordination", "list", "a minute after the last waiter asked", "as above"),
    KeyKind("holdfast:semaphore:{<name>}", "coordination", "zset", "until the lease of the last holder ends", "as a lock"),
    KeyKind("holdfast:semaphore:{<name>}:fence", "coordination", "string", "a day after it was last taken", "as a lock"),
    KeyKind("holdfast:semaphore:{<name>}:queue", "coordination", "list", "a minute after the last waiter asked", "as a lock"),
    KeyKind("holdfast:redlock:{<name>}", "coordination", "string", "the lock's ttl, renewed while it is held",
            "on servers of its own; closed: it is taken on most of the servers, or not at all"),
    KeyKind("holdfast:limit:{<key>}:<way>", "coordination", "string", "until all of it is free again: its window, or its "
            "bucket's refill", "as each limit says: closed, local or open"),
    KeyKind("holdfast:limit:{<key>}:slots", "coordination", "zset", "until the lease of the last holder ends", "as above"),
    KeyKind("holdfast:circuit:{<name>}", "coordination", "hash", "an hour after the last failure", "open: everybody is called"),
    KeyKind("holdfast:budget:{<root>}", "coordination", "hash", "32 days after the last call",
            "closed: nothing is admitted until it is rebuilt"),
    KeyKind("holdfast:budget:{<root>}:calls", "coordination", "zset", "as the budget's", "as above"),
    KeyKind("holdfast:llm:{<provider>}:<kind>", "coordination", "string", "until the provider has room again, at most an hour",
            "open: the provider refuses by itself"),
    KeyKind("holdfast:stream:<name>", "coordination", "stream", "none: bounded by its readers' `trim`, which drops what every "
            "group is done with", "appending and reading raise; the program decides"),
    KeyKind("holdfast:stream:<name>:dead", "coordination", "stream", "none: until a person puts back or drops what lies there",
            "as above"),
    KeyKind("<stream>:once:<token>", "coordination", "string", "a day, or as asked, after the entry was appended", "as above"),
    KeyKind("holdfast:intake", "coordination", "stream", "none: bounded by its consumer, which keeps the newest entries it is "
            "done with (intake_keep_size)", "closed: nothing is accepted here until Redis is back"),
    KeyKind("holdfast:intake:dead", "coordination", "stream", "none: until a person puts back or drops what lies there",
            "as above"),
    KeyKind("holdfast:events", "coordination", "stream", "none: bounded by the relay (events_keep_size), ten times as long while "
            "a group has yet to read it", "the relay appends later; the events are in Postgres"),
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
    KeyKind("holdfast:flags", "cache", "hash", "a day after a process last looked at Postgres",
            "open: each process goes by the last flags it knows"),
    KeyKind("holdfast:login:<digest>", "coordination", "string", "15 minutes, or until it was used",
            "closed: it logs nobody in"),
    KeyKind("holdfast:session:{<digest>}", "coordination", "hash", "the session's: it slides to its idle life, up to its "
            "absolute one; of one that was ended, a mark for as long", "closed: nobody is logged in"),
    KeyKind("holdfast:sessions:{<user>}", "coordination", "zset", "until the last of them ends", "closed: as above"),
    KeyKind("holdfast:presence:{<place>}", "coordination", "zset", "two lives of its last sign", "open: nobody is shown on-line"),
    KeyKind("holdfast:presence:{<place>}:members", "coordination", "hash", "as above", "open: as above"),
    KeyKind("holdfast:typing:{<place>}", "coordination", "zset", "two lives of its last sign", "open: nobody is shown typing"),
    KeyKind("holdfast:typing:{<place>}:members", "coordination", "hash", "as above", "open: as above"),
    KeyKind("holdfast:board:{<name>}:<window>", "coordination", "zset",
            "a window's length after its end; without a window 35 days after its last score", "closed: it is not shown"),
    KeyKind("holdfast:board:{<name>}:<window>:new:<build>", "coordination", "zset", "an hour: one that is being built",
            "closed: as above"),
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


def lock(name: str) -> str:
    """Return the lease of a named lock; its fence and its queue lie beside it."""
    return f"holdfast:lock:{{{name}}}"


def semaphore(name: str) -> str:
    """Return the leases of a semaphore; its fence and its queue lie beside it."""
    return f"holdfast:semaphore:{{{name}}}"


def redlock(name: str) -> str:
    """Return the lease of a Redlock on each of its servers."""
    return f"holdfast:redlock:{{{name}}}"


def fence(lease: str) -> str:
    """Return where the last fencing token given out for a lock or semaphore stands."""
    return f"{lease}:fence"


def waiters(lease: str) -> str:
    """Return those who wait for a lock or semaphore, the first to be served first."""
    return f"{lease}:queue"


def turns(process: str) -> str:
    """Return the channel on which a process hears that one of its waiters has been given a lock."""
    return f"holdfast:turns:{process}"


def limit(key: str, way: str) -> str:
    """Return the counter of a limit for one key; `way` is how it counts, so that another way of counting starts anew."""
    return f"holdfast:limit:{{{key}}}:{way}"


def circuit(name: str) -> str:
    """Return the failures in a row of a party that is called."""
    return f"holdfast:circuit:{{{name}}}"


def budget(root: str) -> str:
    """Return what the tree of subjects under a root has spent, and the calls that are still open."""
    return f"holdfast:budget:{{{root}}}"


def budget_calls(root: str) -> str:
    """Return the calls of a tree by the moment something is to be done about them: their lease ends, or they are forgotten."""
    return f"holdfast:budget:{{{root}}}:calls"


def llm_room(provider: str, kind: str) -> str:
    """Return what the provider of a model says it has left of requests or tokens, or that it is not to be called for now."""
    return f"holdfast:llm:{{{provider}}}:{kind}"


def stream(name: str) -> str:
    """Return a stream of a program's own; its dead letters lie beside it."""
    return f"holdfast:stream:{name}"


def stream_once(stream: str, token: str) -> str:
    """Return the mark of an entry that is to be appended once."""
    return f"{stream}:once:{token}"


def intake() -> str:
    """Return the stream into which services put jobs; its dead letters lie beside it."""
    return "holdfast:intake"


def dead(stream: str) -> str:
    """Return the dead letters of a stream."""
    return f"{stream}:dead"


def events() -> str:
    """Return the stream of what happens to jobs."""
    return "holdfast:events"


def news() -> str:
    """Return the channel on which processes hear that there are new events."""
    return "holdfast:events:news"


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


def flags() -> str:
    """Return the last flags read from Postgres, for who starts while it is away; and the channel that tells of changes."""
    return "holdfast:flags"


def session(digest: str) -> str:
    """Return the record of a session, by the digest of its id."""
    return f"holdfast:session:{{{digest}}}"


def sessions(user: str) -> str:
    """Return the digests of a user's sessions, by when each ends at the latest."""
    return f"holdfast:sessions:{{{user}}}"


def login_link(digest: str) -> str:
    """Return the name of the operator whom a link logs in once, by the digest of its token."""
    return f"holdfast:login:{digest}"


def presence(place: str) -> str:
    """Return who is at a place, by when each is taken for gone; and the channel that tells of coming and going."""
    return f"holdfast:presence:{{{place}}}"


def typing(place: str) -> str:
    """Return who is typing at a place, by when each has stopped; and the channel that tells of it."""
    return f"holdfast:typing:{{{place}}}"


def members(place_key: str) -> str:
    """Return how many devices each member has at a place or is typing on."""
    return f"{place_key}:members"


def board(name: str, window: str) -> str:
    """Return a leaderboard in one of its windows."""
    return f"holdfast:board:{{{name}}}:{window}"


def board_new(key: str, build: str) -> str:
    """Return where one build makes a leaderboard anew."""
    return f"{key}:new:{build}"
