"""Streams on Redis: consumer groups that lose nothing, dead letters, and trimming that waits for every group."""

from worker.streams.dead import DeadLetter, DeadLetters
from worker.streams.entry import Entry, first_id_at, pack, unpack
from worker.streams.group import Group, Pending
from worker.streams.peek import ConsumerState, GroupState, consumers_of, groups_of
from worker.streams.replay import Replay
from worker.streams.stream import Stream

__all__ = [
    # writing
    "Stream", "Entry", "pack", "unpack",
    # reading
    "Group", "Pending",
    # when something is wrong
    "DeadLetters", "DeadLetter",
    # looking, and looking again
    "GroupState", "groups_of", "ConsumerState", "consumers_of", "Replay", "first_id_at",
]  # fmt: skip
