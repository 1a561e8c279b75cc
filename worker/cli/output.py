"""What commands print: data on stdout, as one JSON document or as a table; everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

#: Columns of a table that is read by a program or a file: nothing is cut or wrapped for it.
_UNBOUNDED = 100_000

#: How each state is shown on a terminal.
_STYLES = {
    "succeeded": "green", "running": "cyan", "failed": "red", "discarded": "red", "cancelled": "yellow", "expired": "yellow",
    "up": "green", "silent": "red", "left": "dim", "paused": "yellow",
}  # fmt: skip


def note(text: str) -> None:
    """Print one line of ours on stderr."""
    print(f"holdfast: {text}", file=sys.stderr, flush=True)


def log_to_stderr() -> None:
    """Send the log lines of a command that may write some to stderr: they are no data."""
    from worker.telemetry import print_lines

    print_lines(on_stderr=True)


def emit(document: Any) -> None:
    """Print one JSON document on stdout; moments are ISO 8601 in UTC, numbers for which JSON has no word are text."""
    try:
        text = json.dumps(document, default=_plain, ensure_ascii=False, indent=2, allow_nan=False)
    except ValueError:
        text = json.dumps(_worded(document), default=_plain, ensure_ascii=False, indent=2)
    print(text)


def emit_line(record: Mapping[str, Any]) -> None:
    """Print one JSON object on a line of its own, at once: for what goes on."""
    print(json.dumps(record, default=_plain, ensure_ascii=False), flush=True)


def _worded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _worded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_worded(one) for one in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return str(value)


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, cut: Container[str] = ()) -> None:
    """Print rows as a table on stdout; `columns` gives the fields in order with their headings.

    On a terminal that is too narrow the fields in `cut` are cut short; the others stay whole, to be copied into the next command.
    """
    from rich.table import Table
    from rich.text import Text

    texts = [[shown(row[field]) for field in columns] for row in rows]
    made = Table(box=None, pad_edge=False, header_style="bold")
    for place, (field, heading) in enumerate(columns.items()):
        width = max(len(heading), *(len(line[place]) for line in texts)) if texts else len(heading)
        made.add_column(heading, no_wrap=True, overflow="ellipsis", min_width=min(width, 8) if field in cut else width)
    for line in texts:
        made.add_row(*(Text(text, style=_STYLES.get(text, "")) for text in line))
    console().print(made)


def record(fields: Iterable[tuple[str, Any]]) -> None:
    """Print one record on stdout, a field a line; a text of several lines stands indented below its name."""
    from rich.text import Text

    to, given = console(), [(name, shown(value)) for name, value in fields if value is not None]
    width = max((len(name) for name, _ in given), default=0)
    for name, text in given:
        line = Text(f"{name:<{width}}  ", style="bold")
        if "\n" in text:
            text = "".join(f"\n  {part}" for part in text.splitlines())
        to.print(line.append(text, style=_STYLES.get(text, "not bold")), soft_wrap=True)


def shown(value: Any) -> str:
    """Return a value as people read it: moments to the second in UTC, nothing that could steer their terminal."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    if isinstance(value, dict | list):
        return json.dumps(value, default=_plain, ensure_ascii=False)
    if isinstance(value, bytes):
        value = _plain(value)
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in str(value))


def in_line(value: Any) -> str:
    """Return a value as `shown`, on one line whatever it holds."""
    return shown(value).replace("\n", "\\n").replace("\t", "\\t")


def console() -> Console:
    """Return the console on stdout; what is read by a program or a file is as wide as it comes."""
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_UNBOUNDED)


def error_console() -> Console:
    """Return the console on stderr, for progress bars and prefixes."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)
