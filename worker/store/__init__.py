"""Redis as Holdfast uses it: one client a role, every key declared, every script a file."""

from worker.store import keys
from worker.store.client import Client, Role, cache, coordination, limits
from worker.store.keepers import Keeper, Lease, Loss, counted_on, keeper
from worker.store.scripts import Script, script

__all__ = [
    # servers
    "Client", "Role", "cache", "coordination", "limits",
    # what is asked of them
    "Script", "keys", "script",
    # what is held on them
    "Keeper", "Lease", "Loss", "counted_on", "keeper",
]  # fmt: skip
