"""Live state: what a flag costs and when a change is seen, sessions in races, presence in a crowd, a board of a million.

    python -m benchmarks.live [--quick] [--json]

No peers run beside it: the session libraries it would be held against are no dependency of this project.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random

import psycopg
from redis import Redis

from benchmarks import support
from tests.harness import ROOT
from worker.db import upgrade
from worker.errors import SessionConflict, SessionGone
from worker.ledger import flags
from worker.ledger.flags import Held
from worker.live import Board, Presence, Score, Sessions, Snapshot, flag

#: Processes that watch a flag.
FLEET = 8

WATCHER = """
import os, sys, time
from worker.ledger import flags
flags.feed()
parent = os.getpid()
for number in range(int(sys.argv[1])):
    if os.fork() == 0:
        break
else:
    time.sleep(3600)
flags.feed()
seen = -1
os.write(1, b"0 0\\n")
while os.getppid() == parent:
    version = flags.feed().snapshot.version
    if version != seen:
        seen = version
        os.write(1, b"%d %f\\n" % (version, time.time()))
    time.sleep(0.001)
"""


def per_call_us(work: Callable[[], object], seconds: float) -> float:
    """Return the microseconds of one call: the least of several runs, which is what the code itself takes."""
    count, best = 10_000, float("inf")
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        for _ in range(count):
            work()
        best = min(best, (time.perf_counter() - start) / count * 1e6)
    return best


# ---- flags


def evaluation(report: support.Report, *, seconds: float) -> None:
    """Time a flag in process, among a thousand, and what the switches cost a job."""
    rules = {f"flag-{n}": flag(f"flag-{n}") for n in range(1000)}
    rules["part"] = flag("part", share=2500)
    rules["listed"] = flag("listed", on=False, allow={"caller": [f"c{n}" for n in range(100)]}, deny={"task": ["t"]})
    snapshot = Snapshot(1, rules)
    job = Held("0190-job", "report", "default")
    on = flags._switches_of(Snapshot(2, {"task:other": flag("task:other", on=False)}))
    assert on is not None
    flags.feed().snapshot = Snapshot()
    timed = {
        "boolean": lambda: snapshot.is_on("flag-7"),
        "roll-out": lambda: snapshot.is_on("part", "user-7"),
        "allow-list": lambda: snapshot.is_on("listed", "user-7", caller="c99", task="u"),
        "unknown": lambda: snapshot.is_on("nobody"),
        "a job, while no switch is off": flags.switches,
        "a job, while one of another task is": lambda: on.mark_of(job),
    }
    rows = []
    for name, work in timed.items():
        us = per_call_us(work, seconds)
        report.figure(f"flag, {name}, µs", us)
        rows.append([name, f"{us:.2f}"])
    report.table("One evaluation of a flag", ["flag", "µs"], rows)
    report.target("slowest evaluation of a flag, µs", max(float(row[1]) for row in rows), most=5.0)


def change(report: support.Report, here: support.Servers, *, changes: int) -> None:
    """Change a flag again and again, and time when each of eight processes sees it."""
    watchers = subprocess.Popen(
        [sys.executable, "-c", WATCHER, str(FLEET)], cwd=ROOT, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    )
    assert watchers.stdout is not None
    committed: dict[int, float] = {}
    taken: list[float] = []
    try:
        ready = 0
        while ready < FLEET:
            ready += watchers.stdout.readline() == "0 0\n"
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
            for share in range(changes):
                before = time.time()
                committed[flags.put(conn, flag("fleet", share=share), actor="bench").revision] = before
                time.sleep(0.05)
            last = max(committed)
            done = 0
            while done < FLEET:
                version, at = watchers.stdout.readline().split()
                if int(version) in committed:
                    taken.append(float(at) - committed[int(version)])
                done += int(version) == last
    finally:
        watchers.kill()
        watchers.wait()
    for percent in (50, 99):
        report.figure(f"change of a flag seen, p{percent}, s", support.percentile(taken, percent))
    report.table("A change of a flag is seen by eight processes after", ["seen", "p50, ms", "p99, ms", "longest, ms"], [
        [f"{len(taken)} times", *(round(1000 * support.percentile(taken, p)) for p in (50, 99, 100))],
    ])  # fmt: skip
    report.target("change of a flag seen, p99, s", support.percentile(taken, 99), most=1.0)


# ---- sessions


def races(report: support.Report, *, count: int) -> None:
    """Let a logout race with a request that writes, rotates or logs in; count the sessions that are back from the dead."""
    sessions, chance = Sessions(), Random(1)
    ways = chance.choices(("write", "rotate", "login"), weights=(8, 1, 1), k=count)
    opened = [sessions.open("ann" if way != "login" else None) for way in ways]
    successors: list[str] = [""] * count
    barrier, won, back = threading.Barrier(2), 0, 0

    def requests() -> None:
        nonlocal won
        for number, (way, session) in enumerate(zip(ways, opened, strict=True)):
            barrier.wait()
            try:
                if way == "write":
                    session.data["n"] = 1
                    sessions.write(session)
                else:
                    successors[number] = sessions.rotate(session, "ann" if way == "login" else None).id
                won += 1
            except (SessionGone, SessionConflict):
                pass
            barrier.wait()

    thread = threading.Thread(target=requests)
    thread.start()
    for number, session in enumerate(opened):
        barrier.wait()
        sessions.end(session.id)
        barrier.wait()
        back += sum(sessions.read(one) is not None for one in (session.id, successors[number]))
    thread.join()
    report.figure("races of a logout, in which the request came first", won)
    report.target(f"sessions back from the dead, of {count:,} races", back, most=0)
    session = sessions.open("ann")
    report.table("One session", ["what", "µs"], [
        ["read", round(per_call_us(lambda: sessions.read(session.id), 1.0))],
        ["write", round(per_call_us(lambda: sessions.write(session), 1.0))],
    ])  # fmt: skip


# ---- presence


def crowd(report: support.Report, *, members: int, beat_s: float, beats: int) -> None:
    """Keep a crowd on-line, of which a tenth dies in silence; count who is shown wrongly, and for how long."""
    place = Presence("crowd", beat_s=beat_s)
    everybody = [(f"member-{n}", "") for n in range(members)]
    living = [pair for n, pair in enumerate(everybody) if n % 10]
    names = {member for member, _ in living}
    start = time.perf_counter()
    place.beat_all(everybody)
    took = time.perf_counter() - start
    died = time.monotonic()
    falsely_off = 0
    gone_s = float("inf")
    last_beat = died
    while time.monotonic() - died < beats * beat_s:
        if time.monotonic() - last_beat >= beat_s:
            last_beat += beat_s
            place.beat_all(living)
        shown = place.online().keys()
        falsely_off += len(names - shown)
        if len(shown) == len(names) and gone_s == float("inf"):
            gone_s = time.monotonic() - died
        time.sleep(0.05)
    report.figure("heartbeats a second, in one process", members / took)
    report.target("falsely on-line, heartbeats", gone_s / beat_s, most=2.0)
    report.target("falsely off-line, members", falsely_off, most=0)


# ---- leaderboards


def leaderboard(report: support.Report, *, members: int, asks: int) -> None:
    """Ask a leaderboard for a member and its neighbours, lose it, and build it anew."""
    board, chance = Board("million", "day", size=2 * members), Random(2)
    start = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    scores = [
        Score(f"member-{n}", chance.randrange(members // 10), start + timedelta(milliseconds=chance.randrange(3_600_000)))
        for n in range(members)
    ]  # fmt: skip
    began = time.perf_counter()
    board.rebuild(scores)
    built_s = time.perf_counter() - began
    with Redis.from_url(os.environ["REDIS_URL"]) as client:
        client.config_resetstat()
        times = []
        for _ in range(asks):
            member = f"member-{chance.randrange(members)}"
            at = time.perf_counter()
            board.around(member, 5)
            times.append((time.perf_counter() - at) * 1e3)
        stats = client.info("commandstats")["cmdstat_evalsha"]
        histogram = _histogram(client)
        (key,) = client.scan_iter("holdfast:board:*")
        before, size = client.zrange(key, 0, -1, withscores=True), client.memory_usage(key, samples=0) or 0
        client.flushall()
        board.rebuild(reversed(scores))
        after = client.zrange(key, 0, -1, withscores=True)
    for percent in (50, 99):
        report.figure(f"rank and neighbours, round trip, p{percent}, ms", support.percentile(times, percent))
    report.figure("rank and neighbours, in the server, mean, ms", stats["usec_per_call"] / 1000)
    report.figure("a leaderboard built anew, s", built_s)
    report.figure("a leaderboard, MB", size / 1e6)
    report.table(f"A leaderboard of {members:,}", ["rank and 10 neighbours", "ms"], [
        *([f"round trips, p{percent}", f"{support.percentile(times, percent):.3f}"] for percent in (50, 99)),
        ["in the server, mean", f"{stats['usec_per_call'] / 1000:.3f}"],
        ["in the server, p99", "not told" if histogram is None else f"{histogram:.3f}"],
    ])  # fmt: skip
    if histogram is not None:
        report.target("rank and neighbours, in the server, p99, ms", histogram, most=1.0)
    else:
        # Two round trips, one for the server's clock, stand for it where the server does not tell.
        report.target("rank and neighbours, round trips, p99, ms", support.percentile(times, 99), most=1.0)
    differ = sum(one != other for one, other in zip(before, after, strict=True))
    report.target("members that differ after a flush and a rebuild", differ, most=0)


def _histogram(client: Redis) -> float | None:
    """Return the p99 of scripts in milliseconds by the server's own measure; None where it has none (before 7.0)."""
    try:
        found = client.execute_command("LATENCY", "HISTOGRAM", "evalsha")
    except Exception:
        return None
    pairs = found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
    told = next(iter(pairs.values()), None)
    told = told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=True)) if told else {}
    counts = told.get(b"histogram_usec") or told.get("histogram_usec")
    if not counts:
        return None
    by_us = list(counts.items()) if isinstance(counts, dict) else list(zip(counts[::2], counts[1::2], strict=True))
    most = by_us[-1][1]
    return float(next(us for us, count in by_us if count >= 0.99 * most)) / 1000


def main() -> None:
    """Run it all."""
    args = support.options(__doc__).parse_args()
    report = support.Report(as_json=args.json)
    with support.servers() as here:
        os.environ["HOLDFAST_REDIS_TIMEOUT_S"] = "10"
        upgrade(here.stack.postgres.url)
        evaluation(report, seconds=0.3 if args.quick else 2.0)
        change(report, here, changes=20 if args.quick else 200)
        here.flush()
        races(report, count=1000 if args.quick else 10_000)
        here.flush()
        crowd(report, members=1000 if args.quick else 10_000, beat_s=1.0 if args.quick else 5.0, beats=4)
        here.flush()
        leaderboard(report, members=100_000 if args.quick else 1_000_000, asks=2000 if args.quick else 20_000)
        flags.forget()
    report.print()


if __name__ == "__main__":
    main()
