"""Fixtures: a private stack for each test process, a fresh database and empty Redis for each test, no program left behind."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from redis import Redis

from tests import browser, harness
from tests.nursery import Nursery
from tests.turns import turns
from worker.cache import hot
from worker.cache.cached import _loaders, _refresher
from worker.embedded import Stack, ensure
from worker.telemetry import print_lines

P = TypeVar("P", bound=harness.Program)

_databases = itertools.count(1)
#: Databases that tests have left behind, swept.
_spare: list[str] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with the name of its folder: `-m "unit or integration"`; where processes share them, put files in turns."""
    here = Path(__file__).parent
    files = {item: str(item.path.relative_to(here)) for item in items if item.path.is_relative_to(here)}
    for item, file in files.items():
        if "/" in file:
            item.add_marker(file.partition("/")[0])
    if hasattr(config, "workerinput"):
        place = {file: number for number, file in enumerate(turns(files.values()))}
        items.sort(key=lambda item: place.get(files.get(item, ""), 0))


def pytest_runtest_setup(item: pytest.Item) -> None:
    harness.programs[:] = [program for program in harness.programs if program.running]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failed test what its programs printed."""
    report = yield
    if report.failed:
        report.sections += [(f"log of {program.name}", program.tail()) for program in harness.programs]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say plainly that tests which need a browser did not run, where that is so."""
    ran = any("tests/console/" in report.nodeid for report in terminalreporter.getreports("passed"))
    if ran and browser.find() is None:
        terminalreporter.write_line(browser.MISSING, yellow=True, bold=True)


def pytest_sessionfinish() -> None:
    harness.end_programs()


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """Keep the developer's own servers and settings out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("HOLDFAST_") or name in ("DATABASE_URL", "REDIS_URL", "CACHE_URL"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _plain_logs() -> None:
    """Log in this process as programs do: to write out the local variables of a traceback holds a gateway up for many seconds."""
    print_lines()


@pytest.fixture(scope="session", autouse=True)
def _nursery() -> None:
    """Start programs as forks: to import what they do takes longer than most tests."""
    harness.nursery = Nursery()


@pytest.fixture(autouse=True)
def _forget_loaders() -> Iterator[None]:
    """Let what a test declares as cached, how it has that refreshed, and the reads it counted, end with the test."""
    known, refresher = dict(_loaders), list(_refresher)
    yield
    _loaders.clear()
    _loaders.update(known)
    _refresher[:] = refresher
    hot._ranking._counts.clear()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Postgres and both Redis servers of this test process, free to be broken: each test finds them running again.

    They do not sync to disk: a test may kill them and keeps every commit, only a crash of the machine would lose some.
    """
    stack = ensure(tmp_path_factory.mktemp("stack"), fsync=False)
    yield stack
    stack.close(wait=True)


@pytest.fixture(autouse=True)
def _heal(request: pytest.FixtureRequest) -> Iterator[None]:
    """Thaw and start what a test has frozen or killed."""
    yield
    if "stack" in request.fixturenames:
        for server in request.getfixturevalue("stack").servers:
            harness.heal(server)


@pytest.fixture(scope="session")
def template(stack: Stack) -> str:
    """The name of a migrated database to copy."""
    from worker.db import upgrade

    upgrade(harness.create_database(stack.postgres.url, "migrated"))
    return "migrated"


@pytest.fixture
def database_url(stack: Stack, template: str) -> Iterator[str]:
    """A migrated database without a row. Making one takes a second, so a test that leaves only rows leaves it to the next."""
    server = stack.postgres.url
    template_url = server.rpartition("/")[0] + f"/{template}"
    url = _spare.pop() if _spare else harness.create_database(server, f"test_{next(_databases)}", template)
    yield url
    harness.heal(stack.postgres)
    harness.forget()
    if harness.sweep_database(url, template_url):
        _spare.append(url)
    else:
        harness.drop_database(server, url.rpartition("/")[2])


@pytest.fixture
def redis(stack: Stack) -> Iterator[Redis]:
    """The coordination Redis, emptied."""
    with Redis.from_url(stack.redis.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def cache(stack: Stack) -> Iterator[Redis]:
    """The cache Redis, emptied."""
    with Redis.from_url(stack.cache.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def env(stack: Stack, database_url: str, redis: Redis, cache: Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """This process, and the programs it starts, on the test's database and the emptied servers."""
    urls = {"DATABASE_URL": database_url, "REDIS_URL": stack.redis.url, "CACHE_URL": stack.cache.url}
    for name, url in urls.items():
        monkeypatch.setenv(name, url)
    harness.forget()
    yield urls
    harness.forget()


@pytest.fixture
def launch(env: dict[str, str]) -> Iterator[Callable[[P], P]]:
    """Start programs on the test's servers: `worker = launch(Worker(include="..."))`; they are gone after the test."""
    started: list[harness.Program] = []

    def start(program: P) -> P:
        started.append(program)
        return program.start()

    yield start
    for program in started:
        program.kill_tree()
