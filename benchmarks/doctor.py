"""The doctor: how long it looks at half a million keys, and for how long the server does nothing else meanwhile.

    python -m benchmarks.doctor [--quick] [--json]

No peers run beside it: nothing else knows which keys are Holdfast's. The raw limit does: a server that reads out each name and
time to live, and looks at neither. If steps of that take too long, it is the machine's doing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from redis import Redis

from benchmarks import support
from worker.app import app
from worker.db import upgrade
from worker.doctor import CHECKS, Check, examine
from worker.store import keys

#: The two checks that have to look at every key.
TWO = "without an end, and not ours"
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
#: Keys of a step of the raw limit, which then takes about as long as one of ours.
RAW_PAGE = 500
RAW = """
local page = redis.call('SCAN', ARGV[1], 'COUNT', ARGV[2])
for i = 1, #page[2] do redis.call('PTTL', page[2][i]) end
return page[1]
"""


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


def check(checks: list[Check]) -> None:
    """Make some checks."""
    report = examine(app, checks)
    assert not report.skipped, report.skipped


def read_raw(cache: Redis) -> None:
    """Have the server read all its keys."""
    step, cursor = cache.register_script(RAW), b"0"
    while True:
        cursor = step(args=[cursor, RAW_PAGE])
        if cursor == b"0":
            return


def look(cache: Redis, work: Callable[[], None]) -> Look:
    """Measure one way to look at all keys."""
    cache.slowlog_reset()
    cache.config_resetstat()
    start = time.perf_counter()
    work()
    took_s = time.perf_counter() - start
    noted = [(entry["duration"] / 1000, entry["command"].split()[0].decode()) for entry in cache.slowlog_get(LOG)]
    calls = sum(one["calls"] for one in cache.info("commandstats").values())
    return Look(took_s, calls, noted)


def main() -> None:
    """Run it all."""
    args = support.options(__doc__).parse_args()
    count, rounds = (100_000, 3) if args.quick else (500_000, 7)
    report = support.Report(as_json=args.json)
    two = [one for one in CHECKS if one.name in ("keys.endless", "keys.undeclared")]
    four = [one for one in CHECKS if one.name.startswith("keys.")]
    with support.servers() as here, Redis.from_url(here.stack.cache.url) as cache:
        upgrade(here.stack.postgres.url)
        app.finalize()
        cache.config_set("maxmemory", 0)
        cache.config_set("slowlog-log-slower-than", NOTED_US)
        cache.config_set("slowlog-max-len", LOG)
        fill(cache, count)
        ways: dict[str, Callable[[], None]] = {
            "raw limit": partial(read_raw, cache), TWO: partial(check, two), "all four checks of keys": partial(check, four),
            "the whole examination": partial(check, list(CHECKS)),
        }  # fmt: skip
        found: dict[str, list[Look]] = {title: [] for title in ways}
        for title, work in [*ways.items()] * rounds:
            found[title].append(look(cache, work))
    rows = []
    for title, looks in found.items():
        took_s = statistics.median(one.took_s for one in looks)
        longest_ms, longest = max((noted for one in looks for noted in one.noted), default=(0.0, "none"))
        over = sum(ms > STEP_MS for one in looks for ms, _ in one.noted)
        report.figure(f"{title}, s", took_s)
        report.figure(f"{title}, longest step, ms", longest_ms)
        report.figure(f"{title}, steps over {STEP_MS:g} ms", over)
        rows.append([title, f"{took_s:.2f}", looks[0].steps, f"{longest_ms:.2f} ({longest})", over])
        if title == TWO:
            raw = statistics.median(one.took_s / limit.took_s for one, limit in zip(looks, found["raw limit"], strict=True))
            report.figure("times the raw limit", raw)
            report.target(f"{count:,} keys, s", took_s, most=2.0 * count / 500_000)
            report.target("longest step of the server, ms", longest_ms, most=STEP_MS)
    columns = ["what is looked for", "s", "steps", "longest, ms", "of all over 5 ms"]
    report.table(f"{count:,} keys on one server, {rounds} times", columns, rows)
    report.print()


if __name__ == "__main__":
    main()
