"""`holdfast cache`: see what is cached and what is read most, forget keys and tags, warm, and audit the server."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import options
from worker.cli.exits import ExitCode
from worker.cli.output import emit, in_line, log_to_stderr, note, record, table
from worker.cli.registry import load
from worker.cli.services import services

if TYPE_CHECKING:
    from worker.cache.audit import Report

app = typer.Typer(no_args_is_help=True, help="Look into the cache, forget, warm and audit it.")

_KINDS = {"kind": "kind", "keys": "keys"}
_HOT = {"name": "loader", "args": "arguments", "reads": "reads lately"}
_WARMED = {"key": "key", "outcome": "outcome", "advanced": "advanced", "load": "load (s)", "age": "age before (s)",
           "error": "error"}  # fmt: skip


@app.command("stats")
def stats(as_json: options.AsJson = False) -> None:
    """Show how full the cache Redis is, how often it had what was asked for, and what it is owed.

    Hits, misses and loads of each region are counters of each process, on its metrics.
    """
    with services():
        from worker.cache.figures import figures
        from worker.db import statement

        with statement() as conn:
            document = figures(conn)
    emit(document) if as_json else record((name.replace("_", " "), value) for name, value in document.items())


@app.command("get")
def get(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The whole key, region included: statistics.backlog:value.")],
    as_json: options.AsJson = False,
) -> None:
    """Show what is cached under a key; exits with 1 when nothing is."""
    with services():
        from worker.cache.names import full_key
        from worker.cache.peek import describe

        found = describe(full_key("", key))
    if found is None:
        note(f"nothing is cached under {key!r}")
        raise typer.Exit(ExitCode.NO)
    emit(found) if as_json else record(found.items())


@app.command("invalidate")
def invalidate(
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="Whole keys.", show_default=False)] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="TAG", help="Forget all under this tag; may be repeated.", show_default=False),
    ] = None,
) -> None:
    """Forget keys, and everything under tags."""
    if not keys and not tags:
        raise ValueError("which? give keys, or --tag")
    with services():
        from worker.cache import invalidate as forget
        from worker.cache.names import full_key
        from worker.errors import StoreUnavailable

        if not forget([full_key("", key) for key in keys or ()], tags or ()):
            raise StoreUnavailable("Redis (cache) did not answer; nothing was forgotten for certain")
    for name in keys or ():
        print(f"forgotten: {in_line(name)}")
    for name in tags or ():
        print(f"forgotten: all under {in_line(name)}")


@app.command("hot")
def hot(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many.")] = 20,
    as_json: options.AsJson = False,
) -> None:
    """List what is read most by named loaders in the whole fleet, the most read first."""
    with services():
        from worker.cache import hot as ranking

        rows = [asdict(found) for found in ranking.top(limit)]
    if as_json:
        emit(rows)
    else:
        table([{**row, "reads": f"{row['reads']:,.0f}"} for row in rows], _HOT, cut=("args",))


@app.command("warm")
def warm(
    most: Annotated[int, typer.Option("--most", min=1, help="Values to refresh at most.")] = 50,
    budget_s: Annotated[float, typer.Option("--budget", min=0.1, metavar="SECONDS", help="Seconds of loading at most.")] = 10.0,
    as_json: options.AsJson = False,
) -> None:
    """Refresh now what beat would: the hottest and the planned that would soon be out of date. Exits with 1 when one failed."""
    log_to_stderr()
    with services():
        load()
        from worker.cache.warm import warm as run

        done = [asdict(report) for report in run(most=most, budget_s=budget_s)]
    if as_json:
        emit(done)
    else:
        table([_warmed(report) for report in done], _WARMED, cut=("key", "error"))
    if any(report["outcome"] in ("failed", "away") for report in done):
        raise typer.Exit(ExitCode.NO)


def _warmed(report: dict[str, Any]) -> dict[str, Any]:
    age = report["age_before_s"]
    return {**report, "load": f"{report['load_s']:.3f}", "age": "" if age is None else f"{age:.1f}"}


@app.command("audit")
def audit(
    most: Annotated[int, typer.Option("--most", min=1, help="Keys to look at, at most.")] = 1_000_000,
    big_bytes: Annotated[int, typer.Option("--big", min=1, metavar="BYTES", help="Size over which a key is big.")] = 262_144,
    as_json: options.AsJson = False,
) -> None:
    """Look through the cache Redis, in small steps, for keys without a life, big keys and undeclared ones.

    Exits with 1 when there are keys without a life or undeclared ones.
    """
    with services():
        from worker.cache.audit import look

        report = look(most=most, big_bytes=big_bytes)
    if as_json:
        emit(asdict(report))
    else:
        _show(report)
    if report.without_ttl.count or report.unknown.count:
        raise typer.Exit(ExitCode.NO)


def _show(report: Report) -> None:
    table([{"kind": kind, "keys": f"{count:,}"} for kind, count in sorted(report.kinds.items())], _KINDS)
    parts = {"without a life": report.without_ttl, "undeclared": report.unknown, "big": report.big}
    print(f"\nlooked at {report.looked_at:,} keys, {report.bytes:,} bytes{'' if report.whole else '; there are more'}")
    for name, part in parts.items():
        print(f"{name}: {part.count:,}" + (f", {part.bytes:,} bytes" if part.count else ""))
        for key in part.keys:
            print(f"  {in_line(key)}")
