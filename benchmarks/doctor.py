"""The doctor: how long it looks at half a million keys, and for how long the server does nothing else meanwhile.

    python -m benchmarks.doctor [--quick] [--json]

No peers run beside it: nothing else knows which keys are Holdfast's.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from redis import Redis

from benchmarks import support
from worker.app import app
from worker.db import upgrade
from worker.doctor import CHECKS, Check, examine
from worker.store import keys

#: What a server is filled with: most keys as the cache holds them, some of strangers, some that never end.
SHAPES = (keys.cache_entry, keys.cache_entry, keys.result, keys.result, keys.cache_lease, "report:{}".format)
#: Of how many keys one has no time to live.
ENDLESS = 100
#: Milliseconds that a step of the server may take.
STEP_MS = 5.0
#: Microseconds from which the server notes a step: it notes the length of none that is shorter.
NOTED_US = 500
#: Entries of its log; more than there are steps.
LOG = 20_000


def fill(cache: Redis, count: int) -> None:
    """Put so many keys of several shapes on a server."""
    pipe = cache.pipeline(transaction=False)
    for number in range(count):
        key = SHAPES[number % len(SHAPES)](str(number))
        pipe.set(key, number, ex=None if number % ENDLESS == 0 else 3600)
        if number % 10_000 == 9_999:
            pipe.execute()
    pipe.execute()


@dataclass
class Look:
    """What one examination took: seconds, steps of the server, and of those it noted the milliseconds and the command."""

    took_s: float
    steps: int
    noted: list[tuple[float, str]]


def look(cache: Redis, checks: list[Check]) -> Look:
    """Make some checks."""
    cache.slowlog_reset()
    cache.config_resetstat()
    start = time.perf_counter()
    report = examine(app, checks)
    took_s = time.perf_counter() - start
    assert not report.skipped, report.skipped
    noted = [(entry["duration"] / 1000, entry["command"].split()[0].decode()) for entry in cache.slowlog_get(LOG)]
    calls = sum(one["calls"] for one in cache.info("commandstats").values())
    return Look(took_s, calls, noted)


def main() -> None:
    """Run it all."""
    args = support.options(__doc__).parse_args()
    count, rounds = (100_000, 3) if args.quick else (500_000, 7)
    report = support.Report(as_json=args.json)
    groups = {
        "without an end, and not ours": [check for check in CHECKS if check.name in ("keys.endless", "keys.undeclared")],
        "all four checks of keys": [check for check in CHECKS if check.name.startswith("keys.")],
        "the whole examination": list(CHECKS),
    }  # fmt: skip
    with support.servers() as here, Redis.from_url(here.stack.cache.url) as cache:
        upgrade(here.stack.postgres.url)
        app.finalize()
        cache.config_set("maxmemory", 0)
        cache.config_set("slowlog-log-slower-than", NOTED_US)
        cache.config_set("slowlog-max-len", LOG)
        fill(cache, count)
        rows = []
        for title, checks in groups.items():
            found = [look(cache, checks) for _ in range(rounds)]
            took_s = statistics.median(one.took_s for one in found)
            longest_ms, longest = max(noted for one in found for noted in one.noted)
            over = sum(ms > STEP_MS for one in found for ms, _ in one.noted)
            report.figure(f"{title}, s", took_s)
            report.figure(f"{title}, longest step, ms", longest_ms)
            rows.append([title, f"{took_s:.2f}", found[0].steps, f"{longest_ms:.2f} ({longest})", over])
            if title.startswith("without"):
                report.target(f"{count:,} keys, s", took_s, most=2.0 * count / 500_000)
                report.target("longest step of the server, ms", longest_ms, most=STEP_MS)
    columns = ["what is looked for", "s", "steps", "longest, ms", "of all over 5 ms"]
    report.table(f"{count:,} keys on one server, {rounds} times", columns, rows)
    report.print()


if __name__ == "__main__":
    main()
