"""Fifty callers on one limit, threads and processes, at the worst moments they can find: every window is checked."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.harness import Program
from worker.limits import Limiter, try_acquire_all
from worker.store import limits

CALLERS = 50
SECONDS = 3.5


@pytest.fixture(autouse=True)
def _patient(conf: Callable[..., None]) -> None:
    conf(limits_timeout_ms=5000)


class Admission(NamedTuple):
    """A cost that was admitted, between two moments of the server's clock, in microseconds."""

    after: int
    before: int
    cost: int


def attempt(limiter: Limiter, cost: int) -> tuple[Admission | None, float]:
    """Try once; the server's clock is read just before and after, in the same round trip."""
    start, answer, end = limits().ask([("TIME",), limiter.command("take", "shared", cost, ""), ("TIME",)])
    decision = limiter.decision("shared", answer)
    moments = [int(s) * 1_000_000 + int(us) for s, us in (start, end)]
    return (Admission(moments[0], moments[1], cost) if decision else None), decision.retry_after_s


def adversary(limiter: Limiter, costs: tuple[int, ...], until: float, seed: int) -> list[Admission]:
    """Ask at once, again at the very moment that was told, or shortly before an edge, until the time is over."""
    chance, found = random.Random(seed), []
    period_s = limiter.rate.period_s
    while time.time() < until:
        admission, retry_s = attempt(limiter, chance.choice(costs))
        if admission:
            found.append(admission)
        elif chance.random() < 0.5:
            time.sleep(min(retry_s, 0.5))
        elif chance.random() < 0.3:
            time.sleep(period_s - time.time() % period_s)  # all of them at the edge of a second
    return found


def storm(limiter: Limiter, costs: tuple[int, ...]) -> list[Admission]:
    found: list[list[Admission]] = [[] for _ in range(CALLERS)]
    until = time.time() + SECONDS

    def caller(number: int) -> None:
        found[number] = adversary(limiter, costs, until, number)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(admission for admissions in found for admission in admissions)


def most_in_any(admitted: list[Admission], window_us: float) -> int:
    """Return the highest cost that was certainly admitted within one window of this length, over every window."""
    most = total = first = 0
    for last, admission in enumerate(admitted):
        total += admission.cost
        while admission.before - admitted[first].after >= window_us:
            total -= admitted[first].cost
            first += 1
        most = max(most, total)
        assert first <= last + 1
    return most


@pytest.mark.parametrize("costs", [(1,), (1, 2, 7)])
def test_sliding_window_never_holds_more_than_the_limit_whatever_the_timing(costs: tuple[int, ...], env: dict[str, str]) -> None:
    limiter = Limiter("40/second", name="race")
    admitted = storm(limiter, costs)
    assert most_in_any(admitted, 1_000_000) <= 40
    assert sum(a.cost for a in admitted) >= 40 * (SECONDS - 1.5) * 0.8, "it hardly admitted anything"


def test_bucket_admits_burst_and_rate_in_every_window_of_every_length(env: dict[str, str]) -> None:
    limiter = Limiter("60/second burst 15", name="race")
    admitted = storm(limiter, (1, 3))
    for window_us in (1_000, 50_000, 250_000, 1_000_000, 2_000_000):
        assert most_in_any(admitted, window_us) <= 15 + 60 * window_us / 1_000_000
    assert sum(a.cost for a in admitted) >= 15 + 60 * (SECONDS - 1) * 0.8


def test_fixed_window_admits_at_most_twice_the_limit_across_its_edge(env: dict[str, str]) -> None:
    admitted = storm(Limiter("40/second fixed", name="race"), (1,))
    assert most_in_any(admitted, 1_000_000) <= 80
    assert len(admitted) <= 40 * (int(SECONDS) + 2)


def test_checker_would_see_an_overshoot() -> None:
    admitted = [Admission(i, i, 1) for i in range(41)]
    assert most_in_any(admitted, 1_000_000) == 41
    assert most_in_any([Admission(0, 0, 40), Admission(1_000_000, 1_000_001, 40)], 1_000_000) == 40


def test_four_processes_keep_to_one_limit(env: dict[str, str], launch: Callable[[Program], Program], redis: Any) -> None:
    """Each of them tells how many it admitted in the same three seconds."""
    code = (
        "import sys, time, threading\n"
        "from worker.limits import Limiter\n"
        "limiter = Limiter('30/second', name='fleet')\n"
        "start = float(sys.argv[1]); found = []\n"
        "time.sleep(max(0, start - time.time()))\n"
        "def work():\n"
        "    while time.time() < start + 3:\n"
        "        if limiter.try_acquire('shared'): found.append(time.time())\n"
        "threads = [threading.Thread(target=work) for _ in range(12)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "print('admitted', len(found), flush=True)\n"
    )
    start = time.time() + 6
    programs = [launch(Program("-c", code, str(start), name="caller")) for _ in range(4)]
    admitted = sum(int(program.wait_for_log(r"admitted (\d+)", 30)[1]) for program in programs)
    # Three seconds and what the last answers took: at most four windows' worth, and never less than two.
    assert 60 <= admitted <= 120
    assert sys.executable


def test_fifty_callers_on_several_limits_leave_no_half_charge(env: dict[str, str]) -> None:
    wide, narrow = Limiter("100000/hour fixed", name="wide"), Limiter("100/hour fixed", name="narrow")
    admitted = [0] * CALLERS

    def caller(number: int) -> None:
        for _ in range(20):
            admitted[number] += bool(try_acquire_all([wide.on(), narrow.on()]))

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(admitted) == 100
    assert wide.peek().remaining == 100_000 - 100, "a refusal of the narrow one charged the wide one"


def test_fifty_holders_never_hold_more_slots_than_there_are(env: dict[str, str]) -> None:
    limiter = Limiter("7 concurrent", name="race")
    lock, inside, most, turns = threading.Lock(), 0, 0, 0
    began = time.monotonic()

    def caller(number: int) -> None:
        nonlocal inside, most, turns
        # For two seconds, and on a slow machine until all of them were held at a time.
        while (spent := time.monotonic() - began) < 2 or (most < 7 and spent < 30):
            if not limiter.try_acquire("shared", holder=f"h{number}"):
                time.sleep(0.002)
                continue
            with lock:
                inside += 1
                most, turns = max(most, inside), turns + 1
            time.sleep(0.003)
            with lock:
                inside -= 1
            limiter.release("shared", f"h{number}")

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 7
    assert turns > 50
    assert limiter.peek("shared").remaining == 7
