"""Redis as Holdfast uses it: one client a role, every key declared, every script a file."""

from worker.store import keys
from worker.store.client import Client, Role, cache, coordination
from worker.store.keepers import Keeper, Lease, keeper
from worker.store.scripts import Script, script

__all__ = ["Client", "Keeper", "Lease", "Role", "Script", "cache", "coordination", "keeper", "keys", "script"]
