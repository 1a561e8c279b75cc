"""Start, share and stop Postgres and two Redis servers from wheels, for a machine that has neither.

The servers are daemons. Each process that uses them holds a shared `flock` on `users.lock`; a detached keeper waits for the
exclusive one. The kernel drops a lock with its last holder, also after kill -9, so the keeper gets it when nobody is left, and
then it stops the servers. `start.lock` is held while servers start; `keeper.lock` by the keeper, for life.
"""

from worker.embedded.postgres import PostgresServer
from worker.embedded.redis import RedisServer
from worker.embedded.server import Server
from worker.embedded.stack import Stack, ensure

__all__ = ["ensure", "Stack", "Server", "PostgresServer", "RedisServer"]
