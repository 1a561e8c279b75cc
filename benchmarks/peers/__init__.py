"""The systems that are measured side by side, one module each.

A module has `TITLE`, `PACKAGE` (its distribution), `SETUP` (its worker's configuration, for people), `delay(n)` (enqueue n no-ops
as usual, one at a time), `many(n)` (the fastest way it has), `WORKER` (arguments of Python that start its worker) and, where they
are wanted, `WORKERS` (how many of these), `HELPERS` (other programs), `prepare()` (for tables). Servers are named by `REDIS_URL`,
`CACHE_URL` and `DATABASE_URL`.
"""

#: In the order of the table.
NAMES = ("bare", "holdfast", "rq", "dramatiq", "huey", "taskiq", "procrastinate", "pgqueuer")
