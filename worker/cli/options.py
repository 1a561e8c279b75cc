"""Options that several commands have in common."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from worker.cli import parse

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]

Ids = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="The jobs; or choose them by filters.", show_default=False)
]
State = Annotated[
    list[str] | None,
    typer.Option("--state", metavar="STATE", help="Only jobs in this state; may be repeated.", show_default=False),
]
TaskName = Annotated[str | None, typer.Option("--task", metavar="NAME", help="Only jobs of this task.")]
QueueName = Annotated[str | None, typer.Option("--queue", metavar="NAME", help="Only jobs of this queue.")]
Caller = Annotated[str | None, typer.Option("--caller", metavar="NAME", help="Only jobs of this caller.")]
Since = Annotated[
    datetime | None,
    typer.Option("--since", parser=parse.past, metavar="TIME", help="Only jobs accepted since then: 2h, 1d, or a time."),
]
Until = Annotated[
    datetime | None,
    typer.Option("--until", parser=parse.past, metavar="TIME", help="Only jobs accepted before then: 2h, 1d, or a time."),
]
Search = Annotated[
    str | None, typer.Option("--search", metavar="TEXT", help="Only jobs with this text in their id or arguments.")
]
LogLevel = Annotated[
    str | None, typer.Option("--loglevel", "-l", metavar="LEVEL", help="Least severe log line; by default HOLDFAST_LOG_LEVEL.")
]
