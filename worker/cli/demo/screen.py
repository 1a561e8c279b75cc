"""What the demo shows while it runs: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from abc import abstractmethod
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from worker.cli.demo.figures import Count, Figures
from worker.cli.output import note
from worker.cli.output import table as print_table

_COLUMNS = ("accepted", "waiting", "running", "done", "effects", "duplicates", "lost")
#: Columns in which anything but nothing is bad.
_BAD = ("duplicates", "lost")
#: Seconds between two lines where there is no terminal.
_LINE_S = 2.0


class Screen(AbstractContextManager["Screen"]):
    """Shows figures and events."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        #: What happened: seconds since the beginning, and a text.
        self.events: list[tuple[float, str]] = []

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    @abstractmethod
    def show(self, figures: Figures) -> None:
        """Show the figures of this moment."""

    def tell(self, text: str) -> None:
        """Show something that happened."""
        self.events.append((round(self.elapsed_s, 1), text))

    @abstractmethod
    def close(self, figures: Figures) -> None:
        """Show the final figures."""


class LiveScreen(Screen):
    """A table that is drawn anew, with what happened below it."""

    def __init__(self) -> None:
        super().__init__()
        self._figures: Figures | None = None
        self._live = Live(console=Console(highlight=False), get_renderable=self._draw, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def show(self, figures: Figures) -> None:
        self._figures = figures

    def close(self, figures: Figures) -> None:
        self._figures = figures
        self._live.stop()

    def _draw(self) -> Group:
        parts: list[Table | Text] = []
        if self._figures is not None:
            parts += [_rich_table(self._figures, self.elapsed_s), Text(), *map(Text, remarks(self._figures)), Text()]
        return Group(*parts, *(Text(f"{at:5.1f} s  {text}") for at, text in self.events))


class LineScreen(Screen):
    """Lines on stderr; the table, once, on stdout at the end, unless stdout is for the figures of a program."""

    def __init__(self, *, table: bool) -> None:
        super().__init__()
        self._table, self._shown = table, 0.0

    def show(self, figures: Figures) -> None:
        if time.monotonic() - self._shown >= _LINE_S:
            self._shown = time.monotonic()
            self._print(", ".join(f"{name} {text}" for name, text in _texts(figures.total).items()))

    def tell(self, text: str) -> None:
        super().tell(text)
        self._print(text)

    def _print(self, text: str) -> None:
        note(f"{self.elapsed_s:5.1f} s  {text}")

    def close(self, figures: Figures) -> None:
        if self._table:
            rows = [{"entrance": name, **_texts(count)} for name, count in _rows(figures)]
            print_table(rows, {"entrance": "", **{name: name for name in _COLUMNS}})
            print("\n".join(remarks(figures)))

    def __exit__(self, *_: object) -> None:
        """Leave it as it is: what was printed stays."""


def screen(*, as_json: bool) -> Screen:
    """Return what suits this process's output."""
    return LiveScreen() if sys.stdout.isatty() and not as_json else LineScreen(table=not as_json)


def remarks(figures: Figures) -> list[str]:
    """Return what the table has no column for."""
    return [
        f"rolled back by their caller: {figures.rolled_back:,}, of these ran: {figures.rolled_back_ran:,}",
        f"callbacks: {figures.callbacks:,}, missing: {figures.callbacks_missing:,}, repeated: {figures.callbacks_repeated:,}",
        f"HTTP requests: {figures.requests:,}, repeated: {figures.requests_repeated:,} (an HTTP call is made at least once)",
        f"attempts that died with their worker, their jobs run again: {figures.died:,}",
        f"foreign messages lost with Redis before they were adopted, sent again by their client: {figures.sent_again:,}",
    ]


def _rows(figures: Figures) -> list[tuple[str, Count]]:
    return [*((entrance.value, count) for entrance, count in figures.entrances.items()), ("all", figures.total)]


def _texts(count: Count) -> dict[str, str]:
    return {name: f"{getattr(count, name):,}" for name in _COLUMNS}


def _rich_table(figures: Figures, elapsed_s: float) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column(f"{elapsed_s:.0f} s", no_wrap=True)
    for name in _COLUMNS:
        made.add_column(name, justify="right", no_wrap=True)
    for name, count in _rows(figures):
        cells = [Text(text, style=_style(column, text)) for column, text in _texts(count).items()]
        made.add_row(name, *cells, style="bold" if count is figures.total else "")
    return made


def _style(column: str, text: str) -> str:
    if column in _BAD:
        return "red" if text != "0" else "green"
    return "" if text != "0" else "dim"
