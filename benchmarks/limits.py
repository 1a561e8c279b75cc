"""Limits beside other libraries and a bare INCR: decisions a second on one client, bytes a key, and the worst window of a race.

    python -m benchmarks.limits [--quick] [--json]
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import limits as limits_library
import limits.strategies as strategies
import pyrate_limiter
import throttled
from redis import Redis

from benchmarks import support
from worker.limits import Budgets, Limiter, Plan, Spend, Standing, Window, try_acquire_all
from worker.store import limits

#: What every system is asked: so high that nothing is refused while it is timed.
PLENTY = 10_000_000
KEY = "api.example.com"

#: Seconds for which one system is timed before it is another's turn.
_SLICE_S = 0.05

#: A system under test: it charges one on a key and tells whether it was admitted.
Take = Callable[[], object]


def redis() -> Redis:
    """Return a client as people make it."""
    return Redis.from_url(os.environ["REDIS_URL"])


# ---- the systems, each by the limit a minute it is to keep


def ours(rate: str, limit: int) -> Take:
    """Holdfast."""
    limiter = Limiter(rate.format(limit), name="host")
    return partial(limiter.try_acquire, KEY, holder="bench") if "concurrent" in rate else partial(limiter.try_acquire, KEY)


def of_limits(strategy: str, limit: int) -> Take:
    """The library `limits`."""
    storage = limits_library.storage.RedisStorage(os.environ["REDIS_URL"])
    limiter = strategies.STRATEGIES[strategy](storage)
    return partial(limiter.hit, limits_library.parse(f"{limit}/second"), KEY)


def of_throttled(algorithm: str, limit: int) -> Take:
    """The library throttled-py."""
    store = throttled.RedisStore(server=os.environ["REDIS_URL"])
    limiter = throttled.Throttled(key=KEY, using=algorithm, quota=throttled.per_sec(limit, burst=limit), store=store)
    return lambda: not limiter.limit().limited


def of_pyrate(limit: int) -> Take:
    """The library pyrate-limiter."""
    rate = pyrate_limiter.Rate(limit, pyrate_limiter.Duration.SECOND)
    bucket = pyrate_limiter.RedisBucket.init([rate], redis(), "pyrate")
    limiter = pyrate_limiter.Limiter(bucket)
    return lambda: limiter.try_acquire(KEY, blocking=False)


SYSTEMS: Mapping[str, Callable[[int], Take]] = {
    "holdfast fixed": partial(ours, "{}/second fixed"),
    "holdfast sliding": partial(ours, "{}/second"),
    "holdfast bucket": lambda limit: ours(f"{{}}/second burst {limit}", min(limit, 1_000_000)),
    "holdfast slots": partial(ours, "{} concurrent"),
    "limits fixed": partial(of_limits, "fixed-window"),
    "limits moving": partial(of_limits, "moving-window"),
    "limits sliding": partial(of_limits, "sliding-window-counter"),
    "throttled fixed": partial(of_throttled, "fixed_window"),
    "throttled sliding": partial(of_throttled, "sliding_window"),
    "throttled gcra": partial(of_throttled, "gcra"),
    "pyrate-limiter": of_pyrate,
}


# ---- speed


def several() -> Take:
    """Three limits of Holdfast, all or none."""
    charges = [Limiter(f"{PLENTY}/second", name=name).on(KEY) for name in ("host", "user", "model")]
    return partial(try_acquire_all, charges)


def budget() -> Take:
    """A call on three levels: a reservation, and its settlement."""
    plan = Plan({"org:*": f"{PLENTY} tokens/minute, {PLENTY} micros/day", "org:*/user:*": f"{PLENTY} tokens/minute",
                 "org:*/user:*/key:*": f"{PLENTY} requests/minute"})  # fmt: skip
    budgets, subject = Budgets(plan), "org:acme/user:7/key:3"
    budgets.load("org:acme", [Standing(Window(*cap.window), []) for cap in budgets.check(subject, Spend())])

    def call() -> None:
        reservation = budgets.reserve(subject, Spend(tokens=12, micros=3))
        budgets.settle(subject, reservation.id, Spend(tokens=9, micros=2))

    return call


def rate_of(take: Take, seconds: float) -> float:
    """Return how often a second it decides, on one client."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(20):
            take()
        done += 20
    return done / (time.perf_counter() - start)


def speed(report: support.Report, here: support.Servers, *, turns: int) -> None:
    """Time every system beside a bare INCR by redis-py, and by the client that Holdfast's decisions go through.

    In slices of a twentieth of a second, so that what slows the machine down for a moment slows all of them down.
    """
    here.flush()
    takes: dict[str, Take] = {
        "INCR, redis-py": partial(redis().incr, "bare"),
        "INCR, Holdfast's client": partial(limits().ask, [("INCR", "bare")]),
        **{name: make(PLENTY) for name, make in SYSTEMS.items() if name != "limits moving"},
        # These keep a member a hit: with as many as the others admit they would only be timed at growing.
        "limits moving": SYSTEMS["limits moving"](1000), "pyrate-limiter": SYSTEMS["pyrate-limiter"](1000),
        "holdfast, three at once": several(), "holdfast budget, reserve and settle": budget(),
    }  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in takes}
    for turn in range(-1, turns):
        if turn % 20 == 0:
            support.console.print(f"[dim]speed: slice {turn + 1} of {turns}[/]")
        for name in sorted(takes, key=lambda name: hash((name, turn))):
            rate = rate_of(takes[name], _SLICE_S)
            if turn >= 0:  # one before, to warm up
                found[name].append(rate)
    bare, lean = found["INCR, redis-py"], found["INCR, Holdfast's client"]
    rows = []
    for name, rates in sorted(found.items(), key=lambda item: -support.ratio(item[1], bare)):
        to_bare, to_lean = support.ratio(rates, bare), support.ratio(rates, lean)
        report.figure(f"{name}, of a bare INCR", to_bare)
        rows.append([name, round(sorted(rates)[len(rates) // 2]), f"{to_bare:.2f}", f"{to_lean:.2f}"])
    report.table("Decisions on one client", ["system", "a second", "of redis-py's INCR", "of our client's INCR"], rows)
    slowest = min(("fixed", "sliding", "bucket", "slots"), key=lambda way: support.ratio(found[f"holdfast {way}"], bare))
    report.target(f"slowest decision ({slowest}), of a bare INCR", support.ratio(found[f"holdfast {slowest}"], bare), least=0.8)


# ---- memory


def memory(report: support.Report, here: support.Servers) -> None:
    """Weigh what a thousand hits on one key leave behind, and look for keys that live for ever."""
    rows = []
    with redis() as client:
        for name, make in SYSTEMS.items():
            here.flush()
            take = make(1_000_000)
            for _ in range(1000):
                take()
            found = list(client.scan_iter())
            size = max(client.memory_usage(key, samples=0) or 0 for key in found) if found else 0
            immortal = sum(client.pttl(key) < 0 for key in found)
            rows.append([name, size, len(found), immortal])
            if name.startswith("holdfast"):
                report.target(f"{name}: bytes of a key", size, most=200)
                report.target(f"{name}: keys without a time to live", immortal, most=0)
    report.table("After 1,000 hits on one key", ["system", "bytes of the largest key", "keys", "without a life"], rows)


# ---- the worst window


def worst_window(make: Callable[[int], Take], limit: int, seconds: float) -> float:
    """Let 50 threads ask at once and at the edges of seconds; return the most that was admitted in any second, of the limit.

    An admission is timed by its caller, before and after: only what certainly lies within one second is counted.
    """
    admitted: list[tuple[float, float]] = []
    until = time.time() + seconds

    def caller(number: int) -> None:
        take = make(limit)
        while time.time() < until:
            before = time.time()
            if take():
                admitted.append((before, time.time()))
            elif number % 2:
                time.sleep(1 - time.time() % 1)  # all of these at the edge
            else:
                time.sleep(0.005)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    admitted.sort()
    most = max(sum(1 for _, after in admitted[first:] if after - before < 1) for first, (before, _) in enumerate(admitted))
    return most / limit


def race(report: support.Report, here: support.Servers, *, seconds: float) -> None:
    """Run the race for each system."""
    rows: list[list[Any]] = []
    for name, make in SYSTEMS.items():
        if name.endswith("slots"):
            continue
        here.flush()
        share = worst_window(make, 200, seconds)
        rows.append([name, f"{share:.2f}"])
        if name == "holdfast sliding":
            report.target("worst second of the sliding window, of the limit", share, most=1.05)
    report.table("Most admitted in any second by 50 threads, of a limit of 200", ["system", "of the limit"], rows)


def main() -> None:
    """Run it all."""
    args = support.options(__doc__).parse_args()
    report = support.Report(as_json=args.json)
    with support.servers() as here:
        os.environ["HOLDFAST_LIMITS_TIMEOUT_MS"] = "1000"  # what is measured are decisions, not the policy for slow machines
        speed(report, here, turns=30 if args.quick else 120)
        memory(report, here)
        race(report, here, seconds=2.5 if args.quick else 6)
    report.print()


if __name__ == "__main__":
    main()
