"""Celery's canvas with both Redis servers flushed in the middle: each part runs once, each body runs once."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
from celery import chord, group
from redis import Redis

from tests.chaos import support
from tests.chaos.conftest import Start
from tests.chaos.support import sized
from tests.chaos.tasks import add, fail, on_error, part, part_after_retry, replaced_part, total
from tests.harness import eventually

PARTS = sized(40, 200)


def _effects() -> Iterator[str]:
    """Yield the note of every effect that the canvas of the test must leave, once each."""
    for n in range(PARTS):
        yield f"chord-{n}"
    for n in range(5):
        yield from (f"first-{n}", f"second-{n}", f"retried-{n}", f"replaced-{n}-a", f"replaced-{n}-b")
    for outer in range(3):
        yield f"inner-body-{outer}"
        for n in range(4):
            yield f"inner-{outer}-{n}"
    yield from ("chord-body", "first-body", "second-body", "retried-body", "replaced-body", "outer-body", "after-the-error")


def test_canvas_completes_once_with_flushes_in_the_middle(
    rng: random.Random, arena: Start, broker: Redis, results: Redis
) -> None:
    arena(support.worker())
    slow = 0.02
    sent = {
        "chord": chord([part.si(n, f"chord-{n}", slow) for n in range(PARTS)], total.s("chord-body")).apply_async(),
        "chain of groups": (
            group(part.si(n, f"first-{n}", slow) for n in range(5)) | total.s("first-body")
            | group(add.s(n, f"second-{n}") for n in range(5)) | total.s("second-body")
        ).apply_async(),
        "nested": chord(
            [
                chord([part.si(n, f"inner-{outer}-{n}", slow) for n in range(4)], total.s(f"inner-body-{outer}"))
                for outer in range(3)
            ],
            total.s("outer-body"),
        ).apply_async(),
        "retried": chord([part_after_retry.si(n, f"retried-{n}") for n in range(5)], total.s("retried-body")).apply_async(),
        "replaced": chord([replaced_part.si(n, f"replaced-{n}") for n in range(5)], total.s("replaced-body")).apply_async(),
    }  # fmt: skip
    failed = fail.apply_async(("never",), link_error=on_error.si("after-the-error"))
    hit = 0
    for _ in range(2):
        time.sleep(rng.uniform(0.1, 0.6))
        results.flushall()
        hit += len(support.peek(broker, wipe=True))
    assert hit, "a flush must hit waiting messages"
    expected = {
        "chord": sum(range(PARTS)), "chain of groups": 5 * 10 + 10, "nested": 3 * 6, "retried": 10, "replaced": 15,
    }  # fmt: skip
    assert {name: result.get(timeout=60) for name, result in sent.items()} == expected
    with pytest.raises(ValueError, match="never"):
        failed.get(timeout=10)
    eventually(lambda: not support.one("SELECT count(*) FROM jobs"), what="every job ended")
    assert support.notes() == dict.fromkeys(_effects(), 1)
    ended_twice = support.rows("SELECT id FROM job_history GROUP BY id HAVING count(*) > 1")
    assert not ended_twice
