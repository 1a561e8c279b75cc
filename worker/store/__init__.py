"""Redis as Holdfast uses it: one client a role, every key declared, every script a file."""

from worker.store import keys
from worker.store.client import Role, cache, coordination
from worker.store.scripts import Script, script

__all__ = ["Role", "Script", "cache", "coordination", "keys", "script"]
