"""What all benchmarks share: private servers that sync to disk, programs, rounds that alternate, tables or JSON at the end."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from redis import Redis
from rich.console import Console
from rich.table import Table

from tests.harness import ROOT, Program, create_database, drop_database, eventually
from worker.embedded import Stack, ensure

__all__ = [
    "Program", "Report", "Servers", "console", "create_database", "drop_database", "eventually", "options", "percentile", "ratio",
    "rounds", "servers", "told_by",
]  # fmt: skip

def _console(*, stderr: bool) -> Console:
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=120)


#: What goes on meanwhile; stdout is for the figures.
console = _console(stderr=True)


def options(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: minutes become seconds, and figures rougher")
    parser.add_argument("--json", action="store_true", help="print one JSON object of figures on stdout")
    return parser


class Servers:
    """The private servers of one run."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.folder = stack.home

    def env(self, database_url: str = "") -> dict[str, str]:
        """Return the environment that leads a program to them."""
        return {
            "REDIS_URL": self.stack.redis.url, "CACHE_URL": self.stack.cache.url,
            "DATABASE_URL": database_url or self.stack.postgres.url,
        }  # fmt: skip

    def execute(self, statement: str) -> None:
        """Run a statement on the server's own database."""
        with psycopg.connect(self.stack.postgres.url, autocommit=True) as conn:
            conn.execute(statement)

    def flush(self) -> None:
        """Empty both Redis servers."""
        for server in (self.stack.redis, self.stack.cache):
            with Redis.from_url(server.url) as client:
                client.flushall()


@contextmanager
def servers() -> Iterator[Servers]:
    """Start Postgres and both Redis servers as they come, syncing to disk, and stop and delete them at the end."""
    for name in [name for name in os.environ if name.startswith("HOLDFAST_")]:
        del os.environ[name]  # the developer's own settings are not to be measured
    home = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
    try:
        stack = ensure(home)
        try:
            here = Servers(stack)
            os.environ.update(here.env())
            yield here
        finally:
            stack.close(wait=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def told_by(*args: str, env: Mapping[str, str]) -> Any:
    """Run a Python program to its end and return what it told as JSON on its last line."""
    command = [sys.executable, *args]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rounds(
    count: int, systems: Sequence[str], measure: Callable[[str], Mapping[str, float]]
) -> dict[str, dict[str, list[float]]]:
    """Measure every system once a round, beginning with another each time, and return figures by system and name."""
    found: dict[str, dict[str, list[float]]] = {system: {} for system in systems}
    for turn in range(count):
        shift = turn % len(systems)
        for system in [*systems[shift:], *systems[:shift]]:
            console.print(f"[dim]round {turn + 1} of {count}: {system}[/]")
            for name, value in measure(system).items():
                found[system].setdefault(name, []).append(value)
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios within each round, which a slow minute of the machine does not bend."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which so many percent lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Report:
    """Figures by name, and the tables in which people read them."""

    def __init__(self, *, as_json: bool) -> None:
        self.figures: dict[str, Any] = {}
        self._as_json = as_json
        self._tables: list[Table | str] = []

    def figure(self, name: str, value: float | int | str | None, digits: int = 3) -> None:
        """Keep a figure."""
        self.figures[name] = round(value, digits) if isinstance(value, float) else value

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Keep a table; its first column is text, the others stand to the right."""
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index else "left", no_wrap=not index)
        for row in rows:
            table.add_row(*[cell if isinstance(cell, str) else "" if cell is None else f"{cell:,}" for cell in row])
        self._tables.append(table)

    def line(self, text: str) -> None:
        """Keep a line below the tables."""
        self._tables.append(text)

    def target(self, what: str, value: float, least: float | None = None, most: float | None = None) -> None:
        """Keep a verdict on a figure that has a target."""
        held = (least is None or value >= least) and (most is None or value <= most)
        bound = f"at least {least:g}" if least is not None else f"at most {most:g}"
        self.figure(f"{what}, held", "yes" if held else "no")
        self.line(f"{'[green]held  ' if held else '[red]missed'}[/] {what}: {value:.2f} (target: {bound})")

    def print(self) -> None:
        """Print it all: JSON on stdout and the rest on stderr, or everything on stdout."""
        out = console if self._as_json else _console(stderr=False)
        for table in self._tables:
            out.print(table)
        if self._as_json:
            print(json.dumps(self.figures))
