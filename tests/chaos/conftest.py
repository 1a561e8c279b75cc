"""Fixtures of the chaos tests: a seed for each, and the settings of their size."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from tests import harness
from tests.chaos import support
from tests.harness import Program, Relay
from worker.embedded import Stack

Start = Callable[..., None]


@pytest.fixture
def rng(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> random.Random:
    """Chance that can be had again: `CHAOS_SEED=n`; each test has its own, so one can be repeated alone."""
    told = f"{request.node.name}: CHAOS_SEED={support.SEED}"
    if support.FULL:
        with capsys.disabled():
            print(f"\n{told}")
    else:
        print(told)
    return random.Random(f"{support.SEED} {request.node.name}")


@pytest.fixture
def broker(stack: Stack) -> Iterator[Redis]:
    """The coordination Redis, as it is."""
    with Redis.from_url(stack.redis.url) as client:
        yield client


@pytest.fixture
def results(stack: Stack) -> Iterator[Redis]:
    """The cache Redis, as it is."""
    with Redis.from_url(stack.cache.url) as client:
        yield client


@pytest.fixture(scope="module")
def arena(stack: Stack, template: str, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts programs on a database and servers that the tests of one file share, at the speed of this run; a relay runs.

    Starting what runs already does nothing, so each test names what it needs. `SETTINGS` of the file are put over the usual ones.
    """
    name = request.module.__name__.rpartition(".")[2]
    started: list[Program] = []

    def start(*programs: Program) -> None:
        started.extend(program for program in programs if program not in started)
        support.start_together(*programs)

    with pytest.MonkeyPatch.context() as patch:
        for variable, value in {**support.SETTINGS, **getattr(request.module, "SETTINGS", {})}.items():
            patch.setenv(variable, value)
        patch.setenv("DATABASE_URL", harness.create_database(stack.postgres.url, name, template))
        patch.setenv("REDIS_URL", stack.redis.url)
        patch.setenv("CACHE_URL", stack.cache.url)
        harness.forget()
        for url in (stack.redis.url, stack.cache.url):
            with Redis.from_url(url) as client:
                client.flushall()
        support.make_effects_table()
        relay = Relay()
        yield lambda *programs: start(relay, *programs)
        for program in started:
            program.kill_tree()
        harness.forget()
    stack.postgres.thaw()
    stack.postgres.start()
    harness.drop_database(stack.postgres.url, name)


@pytest.fixture
def crew(arena: Start) -> Iterator[Start]:
    """Starts programs in the arena that are gone after the test."""
    hired: list[Program] = []

    def start(*programs: Program) -> None:
        hired.extend(programs)
        arena(*programs)

    yield start
    for program in hired:
        program.kill_tree()
