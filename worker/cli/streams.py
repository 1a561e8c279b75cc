"""`holdfast streams`: how far behind the readers of the streams are, what was set aside, and reading a range again."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import options, parse
from worker.cli.output import emit, note, table
from worker.cli.registry import load
from worker.cli.services import services

if TYPE_CHECKING:
    from worker.streams import DeadLetter, DeadLetters, Stream

app = typer.Typer(no_args_is_help=True, help="See how far behind streams are read; dead letters, replay, trim.")

#: Dead letters that one command puts back.
_MOST = 100_000

_LAG = {"stream": "stream", "group": "group", "lag": "not read", "pending": "not acknowledged", "oldest_s": "oldest (s)",
        "consumers": "consumers"}  # fmt: skip
_DEAD = {"id": "id", "at": "set aside", "code": "code", "field": "field", "reason": "reason", "fields": "entry"}

_Which = Annotated[
    str, typer.Option("--stream", metavar="NAME", help="The stream: `intake`, `events`, or the whole key of another.")
]


@app.command("lag")
def lag(as_json: options.AsJson = False) -> None:
    """Show, for each group of the intake and the event stream, the entries it has not read or not acknowledged."""
    with services():
        from worker.streams import groups_of

        found = [asdict(group) for name in ("intake", "events") for group in groups_of(_stream(name))]
    if as_json:
        emit(found)
    else:
        table([{**row, "oldest_s": None if row["oldest_s"] is None else f"{row['oldest_s']:.1f}"} for row in found], _LAG)


@app.command("dead")
def dead(
    stream: _Which = "intake",
    limit: Annotated[int, typer.Option(min=1, help="Dead letters to show, the newest first.")] = 50,
    drop: Annotated[list[str] | None, typer.Option("--drop", metavar="ID", help="Delete this one; may be repeated.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the entries that were set aside, with the reason, or delete some of them."""
    with services():
        letters = _dead_letters(stream)
        for letter_id in drop or ():
            letters.drop(letter_id)
            note(f"dropped: {letter_id}")
        found = [] if drop else [_row(letter) for letter in letters.list(limit=limit)]
    if as_json:
        emit(found)
    elif not drop:
        table(found, _DEAD, cut=("reason", "fields"))


@app.command("requeue")
def requeue(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The dead letters.", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="All there are.")] = False,
    stream: _Which = "intake",
    as_json: options.AsJson = False,
) -> None:
    """Put entries that were set aside back into their stream, as new entries at its end."""
    if bool(ids) == every:
        raise ValueError("which dead letters? give their ids, or --all")
    with services():
        letters = _dead_letters(stream)
        chosen = ids or [letter.id for letter in reversed(letters.list(limit=_MOST))]
        done = {letter_id: letters.requeue(letter_id) for letter_id in chosen}
    if as_json:
        emit(done)
    else:
        for letter_id, new_id in done.items():
            print(f"{letter_id} is {new_id} now")


@app.command("replay")
def replay(
    since: Annotated[
        datetime, typer.Option(parser=parse.past, metavar="TIME", help="From then on: 2h, 1d, or a time.", show_default=False)
    ],
    until: Annotated[
        datetime | None, typer.Option(parser=parse.past, metavar="TIME", help="Up to then, not included; by default until now.")
    ] = None,
    group: Annotated[str, typer.Option(metavar="NAME", help="The side group; one that is there goes on.")] = "replay",
    as_json: options.AsJson = False,
) -> None:
    """Read the intake of a time range once more, beside its consumers, and accept what has no job: after a restore of Postgres.

    An entry that has a job, living or past, is not accepted again, and one that was set aside is not set aside again. Entries are
    kept as HOLDFAST_INTAKE_KEEP_SIZE says.
    """
    with services():
        application = load()
        from worker.engine.intake import Intake

        tally = asdict(Intake(application).replay(group, since, until))
    if as_json:
        emit(tally)
    else:
        print(f"accepted: {tally['accepted']}, known already: {tally['known']}, not acceptable: {tally['refused']}")


@app.command("trim")
def trim(
    stream: _Which = "intake",
    keep: Annotated[int, typer.Option(min=0, help="Entries to keep, although every group is done with them.")] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Drop the entries that every group has read and acknowledged; none that one has not."""
    with services():
        dropped = _stream(stream).trim(keep=keep)
    if as_json:
        emit({"dropped": dropped})
    else:
        print(f"dropped: {dropped}")


def _stream(name: str) -> Stream:
    from worker.streams import Stream

    return Stream.called(name)


def _dead_letters(stream: str) -> DeadLetters:
    from worker.streams import DeadLetters

    return DeadLetters(_stream(stream))


def _row(letter: DeadLetter) -> dict[str, Any]:
    return {**asdict(letter), "fields": letter.told}
