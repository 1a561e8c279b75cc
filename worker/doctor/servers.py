"""The two Redis servers: whether they keep and forget what their role asks of them, and how much room they have."""

from __future__ import annotations

from collections.abc import Iterator

from worker.doctor.check import Check, Severity
from worker.doctor.site import Server, Site

#: Part of `maxmemory`, or of the machine's memory where there is none, from which a server that must not evict is short of room.
_FULL = 0.85
#: How many times its data a server may take of the machine's memory, and from how many bytes on that counts: small ones always
#: do.
_FRAGMENTED, _FRAGMENTED_BYTES = 1.5, 256 * 1024 * 1024
#: Milliseconds that make a command slow: for so long everybody else has waited.
_SLOW_MS = 100
#: Seconds for which a slow command is told of.
_LATELY_S = 3600
#: Entries of the slow log that are looked at.
_LOGGED = 128

_MB = 1024 * 1024


def _evicts(site: Site) -> Iterator[str]:
    policy = site.coordination.info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield f"the Redis at REDIS_URL runs with maxmemory-policy {policy}"


def _forgets(site: Site) -> Iterator[str]:
    server = site.coordination
    if server.info.get("aof_enabled") == "0":
        yield "the Redis at REDIS_URL keeps no append-only file"
        return
    if server.info.get("aof_last_write_status", "ok") != "ok":
        yield "the Redis at REDIS_URL cannot write its append-only file"
    if server.config.get("appendfsync") == "no":
        yield "the Redis at REDIS_URL leaves it to the system when its append-only file is written (appendfsync no)"


def _cache_cannot_evict(site: Site) -> Iterator[str]:
    server = site.cache
    policy = server.info.get("maxmemory_policy", "")
    if policy and not policy.startswith("allkeys-"):
        yield f"the Redis at CACHE_URL runs with maxmemory-policy {policy}"
    if not server.number("maxmemory"):
        yield "the Redis at CACHE_URL has no maxmemory"


def _cache_on_disk(site: Site) -> Iterator[str]:
    server = site.cache
    if server.info.get("aof_enabled") == "1":
        yield "the Redis at CACHE_URL keeps an append-only file"
    if server.config.get("save"):
        yield f"the Redis at CACHE_URL writes snapshots (save {server.config['save']!r})"


def _same(site: Site) -> Iterator[str]:
    first, second = (server.info.get("run_id", "") for server in site.servers)
    if first and first == second:
        yield "REDIS_URL and CACHE_URL name the same server"


def _short_of_memory(site: Site) -> Iterator[str]:
    server = site.coordination
    limit, of = server.number("maxmemory"), "its maxmemory"
    if not limit:
        limit, of = server.number("total_system_memory"), "the memory of its machine"
    if limit and server.number("used_memory") > _FULL * limit:
        used = server.number("used_memory")
        yield f"the Redis at REDIS_URL takes {used / _MB:,.1f} MB, {100 * used / limit:.0f} % of {of}"


def _fragmented(site: Site) -> Iterator[str]:
    for server in site.servers:
        used, taken = server.number("used_memory"), server.number("used_memory_rss")
        if used and taken > _FRAGMENTED * used and taken - used >= _FRAGMENTED_BYTES:
            yield f"Redis ({server.name}) takes {taken / _MB:,.0f} MB of memory for {used / _MB:,.0f} MB of data"


def _evicted(site: Site) -> Iterator[str]:
    if count := site.coordination.number("evicted_keys"):
        yield f"the Redis at REDIS_URL has evicted {count:,.0f} keys since it started"


def _rejected(site: Site) -> Iterator[str]:
    for server in site.servers:
        if count := server.number("rejected_connections"):
            yield f"Redis ({server.name}) has turned away {count:,.0f} connections since it started"
        if refused := server.info.get("errorstat_OOM", "").removeprefix("count="):
            yield f"Redis ({server.name}) has refused {int(refused):,} writes for want of memory since it started"


def _slow(site: Site) -> Iterator[str]:
    for server in site.servers:
        if found := _slow_commands(server):
            worst = max(found)
            yield f"Redis ({server.name}) took {worst[0] / 1000:,.0f} ms for {worst[1]}; {len(found)} like it within an hour"


def _slow_commands(server: Server) -> list[tuple[int, str]]:
    """Return microseconds and name of the slow commands of the last hour."""
    log, (now, _) = server.role.ask([("SLOWLOG", "GET", _LOGGED), ("TIME",)])
    recent = [entry for entry in log if int(entry[1]) > int(now) - _LATELY_S and int(entry[2]) >= _SLOW_MS * 1000]
    return [(int(entry[2]), entry[3][0].decode(errors="replace").upper()) for entry in recent]


CHECKS = (
    Check(
        "redis.evicts", Severity.CRITICAL,
        "when it is full it throws away queued jobs, locks and limits",
        "set `maxmemory-policy noeviction` there, in its configuration file as well",
        _evicts,
    ),
    Check(
        "redis.evicted", Severity.CRITICAL,
        "they may have been queued jobs, which the relay sends again, or locks and counters, which were lost",
        "set `maxmemory-policy noeviction` and give it more memory; `CONFIG RESETSTAT` begins the count anew",
        _evicted,
    ),
    Check(
        "redis.same-server", Severity.CRITICAL,
        "one server has one eviction policy: it either evicts jobs and locks, or refuses writes once the cache has filled it",
        "run two servers; numbers of databases do not separate them",
        _same,
    ),
    Check(
        "redis.forgets", Severity.WARNING,
        "a restart loses locks, limits, streams and sessions; jobs are sent again from Postgres",
        "set `appendonly yes` and `appendfsync everysec`, and see to its disk",
        _forgets,
    ),
    Check(
        "cache.cannot-evict", Severity.WARNING,
        "a cache that is full and may not evict refuses new entries, and one without a bound takes all the memory there is",
        "set `maxmemory` and `maxmemory-policy allkeys-lfu` there",
        _cache_cannot_evict,
    ),
    Check(
        "cache.on-disk", Severity.NOTICE,
        "everything in the cache can be had again; writing it costs time, and memory while it forks",
        'set `appendonly no` and `save ""` there',
        _cache_on_disk,
    ),
    Check(
        "redis.memory", Severity.WARNING,
        "when it is full it refuses writes: jobs wait in Postgres, nobody gets a lock, limits fail as they say",
        "raise `maxmemory`, or see `keys.big` and `keys.endless` for what fills it",
        _short_of_memory,
    ),
    Check(
        "redis.fragmentation", Severity.WARNING,
        "memory that holds nothing is missing elsewhere",
        "set `activedefrag yes` where the server can, or restart it at a quiet time",
        _fragmented,
    ),
    Check(
        "redis.rejected", Severity.WARNING,
        "what is turned away does without: jobs wait in Postgres, limits fail as they say",
        "raise `maxclients` or `maxmemory`; `CONFIG RESETSTAT` begins the count anew",
        _rejected,
    ),
    Check(
        "redis.slow", Severity.WARNING,
        "a server does one thing at a time: everybody else has waited for as long",
        "see `SLOWLOG GET`, and who runs `KEYS`, long scripts or commands on big keys",
        _slow,
    ),
)  # fmt: skip
