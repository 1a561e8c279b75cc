"""The ways through the console: which pages stand in its menu, in which order, and for whom."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A line of the menu."""

    path: str
    label: str
    #: The name of its icon in `icons.html`.
    icon: str
    #: The role that it takes to see it.
    role: str = "viewer"


#: Groups of entries, as they stand in the menu.
MENU: tuple[tuple[str, tuple[Entry, ...]], ...] = (
    ("Work", (
        Entry("/console/", "Overview", "overview"),
        Entry("/console/jobs", "Jobs", "jobs"),
        Entry("/console/queues", "Queues", "queues"),
        Entry("/console/schedules", "Schedules", "schedules"),
        Entry("/console/streams", "Streams", "streams"),
        Entry("/console/webhooks", "Webhooks", "webhooks"),
        Entry("/console/leaderboards", "Leaderboards", "leaderboards"),
    )),
    ("Rules", (
        Entry("/console/limits", "Limits", "limits"),
        Entry("/console/flags", "Flags", "flags"),
        Entry("/console/cache", "Cache", "cache"),
        Entry("/console/callers", "Callers", "callers"),
    )),
    ("System", (
        Entry("/console/workers", "Workers", "workers"),
        Entry("/console/audit", "Audit log", "trail"),
        Entry("/console/operators", "Operators", "operators", "admin"),
        Entry("/console/flower", "Flower", "flower"),
    )),
)  # fmt: skip


def current(path: str) -> str:
    """Return the path of the entry that a page belongs to; empty for none."""
    entries = [entry.path for _, group in MENU for entry in group]
    above = [own for own in entries if own != "/console/" and path.startswith(f"{own}/")]
    return path if path in entries else max(above, key=len, default="")
