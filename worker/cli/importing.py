"""`holdfast import`: accept the calls of a file, one a line, safely repeated."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from worker.cli import options
from worker.cli.exits import ExitCode
from worker.cli.output import emit, error_console, note
from worker.cli.registry import load
from worker.cli.services import services
from worker.errors import AlreadyImported

if TYPE_CHECKING:
    from worker.engine.importing import Import, Rejected, Tally


def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines, each with the fields of POST /v1/jobs; - for stdin.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a file that was imported in part; accepts none twice.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every line and accept none.")] = False,
    rejected: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Where rejected lines go; by default FILE.rejected.jsonl.", show_default=False),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Accept a file of jobs in bulk; lines that make no job are set aside with the reason, and the exit code is 1 then.

    It may be interrupted and repeated at any point: a line's job has an id that follows from the file up to that line.
    """
    aside = rejected or Path("stdin.rejected.jsonl" if file == "-" else f"{file}.rejected.jsonl")
    if file != "-" and aside.resolve() == Path(file).resolve():
        raise ValueError(f"--rejected: {aside} is the file to import")
    with _opened(file) as source, services():
        from worker.engine.importing import Import

        app, started = load(), time.monotonic()
        with _Aside(aside) as set_aside:
            run = Import(app, set_aside.add, resume=resume, dry_run=dry_run)
            try:
                _watch(run, source)
            except AlreadyImported as exc:
                raise AlreadyImported(f"{file}: {exc}") from None
    _account(run.tally, file, aside, time.monotonic() - started, dry_run=dry_run, as_json=as_json)
    if run.tally.rejected:
        raise typer.Exit(ExitCode.NO)


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        source = Path(file).open("rb")  # noqa: SIM115 - what goes wrong while it is read is not about opening it
    except OSError as exc:
        raise ValueError(f"{file}: {exc.strerror or exc}") from exc
    with source:
        yield source


class _Aside:
    """The file of rejected lines, made with the first of them; that of an earlier import goes, for each line is read again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None

    def __enter__(self) -> _Aside:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        elif kind is None:
            self._path.unlink(missing_ok=True)

    def add(self, rejected: Rejected) -> None:
        """Write a line: its number, the code and the field every door tells, why, and the line itself."""
        if self._file is None:
            try:
                self._file = self._path.open("w", encoding="utf-8")
            except OSError as exc:
                raise ValueError(f"{self._path}: rejected lines cannot be written: {exc.strerror or exc}") from exc
        error, raw = rejected.error, rejected.line.raw.decode(errors="backslashreplace")
        entry = {"line": rejected.line.number, "code": error.code, "field": error.field, "error": str(error), "given": raw}
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _watch(run: Import, source: BinaryIO) -> None:
    """Carry the import out with a progress bar, by bytes where their number is known."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = error_console()
    columns = [TextColumn("import"), BarColumn(), TextColumn("{task.fields[jobs]:,} jobs"), TimeRemainingColumn()]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("import", total=_size(source), jobs=0)
        for tally in run.run(source):
            progress.update(bar, completed=tally.bytes, jobs=tally.accepted)


def _size(source: BinaryIO) -> int | None:
    """Return the bytes of a file; None for what is no file."""
    try:
        return os.fstat(source.fileno()).st_size or None
    except OSError:
        return None


def _account(tally: Tally, file: str, aside: Path, seconds: float, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        emit({
            "file": file, "dry_run": dry_run, "lines": tally.lines, "accepted": tally.accepted, "known": tally.known,
            "rejected": tally.rejected, "rejected_file": str(aside) if tally.rejected else None, "seconds": round(seconds, 3),
        })  # fmt: skip
        return
    verb = "could be accepted" if dry_run else "accepted"
    print(f"{verb}: {tally.accepted:,} of {tally.lines:,} lines in {seconds:.1f} s")
    if tally.known:
        print(f"known before: {tally.known:,}")
    if tally.rejected:
        note(f"{tally.rejected:,} lines make no job; see {aside}")
