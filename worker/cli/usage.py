"""`holdfast usage`: what metered calls have spent, by subject, model and day."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import typer

from worker.cli import options, parse
from worker.cli.output import emit, table
from worker.cli.services import services
from worker.clock import now

_FIGURES = {"requests": "requests", "tokens_in": "tokens in", "tokens_out": "tokens out", "micros": "micros"}


def usage(
    by: Annotated[
        str, typer.Option("--by", metavar="FIELDS", help="What to sum by: some of subject, model and day, separated by commas.")
    ] = "subject,model,day",
    subject: Annotated[str | None, typer.Option("--subject", metavar="SUBJECT", help="Only this one and those below it.")] = None,
    since: Annotated[
        timedelta | None, typer.Option("--since", parser=parse.duration, metavar="DURATION", help="How far back; by default 30d.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows at the most.")] = 1000,
    as_json: options.AsJson = False,
) -> None:
    """Show what metered calls have spent, in requests, tokens and millionths of money; days are those of UTC."""
    fields = [field.strip() for field in by.split(",") if field.strip()]
    with services():
        from worker.db import statement
        from worker.ledger.usage import totals

        with statement() as conn:
            rows: list[dict[str, Any]] = totals(
                conn, by=fields, since=now() - (since or timedelta(days=30)), subject=subject, limit=limit
            )
    emit(rows) if as_json else table(rows, {**{field: field for field in fields}, **_FIGURES}, cut=("subject",))
