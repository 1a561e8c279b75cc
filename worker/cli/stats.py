"""`holdfast stats`: throughput, failures, run times and backlog, as tables and plots or as JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import options
from worker.cli.exits import ExitCode
from worker.cli.output import console, emit, log_to_stderr, note, table
from worker.cli.services import services

if TYPE_CHECKING:
    from worker.ledger.statistics import Activity, Backlog, QueueBacklog, TaskFigures

#: Widest bar of a plot, in characters.
_WIDTH = 50
#: A bar's last character, by eighths.
_EIGHTHS = " ▏▎▍▌▋▊▉█"
#: The heights of a small plot.
_HEIGHTS = "▁▂▃▄▅▆▇█"

_TASKS = {"task": "task", "ended": "ended", "failed": "failed", "rate": "failed %", "p50": "p50", "p95": "p95", "plot": "by hour"}
_QUEUES = {"queue": "queue", "status": "status", "waiting": "waiting", "running": "running", "scheduled": "scheduled",
           "oldest": "longest wait"}  # fmt: skip


def stats(
    hours: Annotated[int, typer.Option("--hours", min=1, max=168, help="Hours to look back on, the current one included.")] = 24,
    fresh: Annotated[bool, typer.Option("--fresh", help="Count anew, not what the cache knows.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show what ended lately, how long it ran, and what waits; counted every half minute at most, however many look.

    Exits with 1 when `--fresh` could not count anew, and what is shown is older.
    """
    log_to_stderr()
    with services():
        from worker.ledger import statistics

        failed = fresh and not _count_anew(hours)
        activity, backlog = statistics.activity(hours), statistics.backlog()
    if as_json:
        emit(_document(activity, backlog))
    else:
        _show(activity, backlog)
    if failed:
        raise typer.Exit(ExitCode.NO)


def _count_anew(hours: int) -> bool:
    """Count now, and say where what is shown may be older all the same; tell whether that is for no failure."""
    from worker.ledger import statistics

    reports = [statistics.activity.refresh(hours), statistics.backlog.refresh()]
    for report in reports:
        if report.outcome == "failed":
            note(f"{report.key} could not be counted anew: {report.error}")
        elif report.outcome == "held":
            note(f"{report.key} is just being counted by somebody else")
    return all(report.outcome != "failed" for report in reports)


def _document(activity: Activity, backlog: Backlog) -> dict[str, Any]:
    from msgspec import to_builtins

    return {name: to_builtins(part, builtin_types=(datetime,)) for name, part in (("activity", activity), ("backlog", backlog))}


def _show(activity: Activity, backlog: Backlog) -> None:
    console().print(f"Ended in the last {activity.hours} h (UTC), as of {activity.at:%H:%M:%S}", style="bold")
    _plot(activity)
    console().print()
    by_task = _by_task(activity)
    table([_task_line(figures, by_task[figures.task]) for figures in activity.by_task], _TASKS)
    console().print(f"\nBacklog, as of {backlog.at:%H:%M:%S}", style="bold")
    table([_queue_line(queue) for queue in backlog.queues], _QUEUES)


def _plot(activity: Activity) -> None:
    """Draw a bar an hour: what succeeded, and behind it what did not."""
    from rich.text import Text

    ended: dict[datetime, list[int]] = {hour: [0, 0, 0] for hour in _hours(activity)}
    for row in activity.by_hour:
        for at, number in enumerate((row.ended, row.succeeded, row.failed)):
            ended[row.hour][at] += number
    most = max((total for total, *_ in ended.values()), default=0)
    for hour, (total, good, failed) in ended.items():
        line = Text(f"{hour:%H:%M} ").append(bar(good, most), style="green").append(bar(total - good, most), style="red")
        console().print(line.append(f" {total:,}" + (f" ({failed:,} failed)" if failed else "")))


def _hours(activity: Activity) -> list[datetime]:
    last = activity.at.replace(minute=0, second=0, microsecond=0)
    return [last - timedelta(hours=back) for back in reversed(range(activity.hours))]


def _by_task(activity: Activity) -> dict[str, list[int]]:
    places = {hour: at for at, hour in enumerate(_hours(activity))}
    counts: dict[str, list[int]] = defaultdict(lambda: [0] * activity.hours)
    for row in activity.by_hour:
        counts[row.task][places[row.hour]] += row.ended
    return counts


def bar(number: int, most: int) -> str:
    """Return a bar whose length tells the number, to an eighth of a character; something is never drawn as nothing."""
    if not number or not most:
        return ""
    eighths = max(1, round(number * _WIDTH * 8 / most))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def sparkline(numbers: Sequence[int]) -> str:
    """Return a plot of one character a number; none at all is a space."""
    most = max(numbers, default=0)
    return "".join(_HEIGHTS[max(0, -(-number * len(_HEIGHTS) // most) - 1)] if number else " " for number in numbers)


def _task_line(figures: TaskFigures, by_hour: Iterable[int]) -> dict[str, Any]:
    return {
        "task": figures.task, "ended": f"{figures.ended:,}", "failed": f"{figures.failed:,}",
        "rate": f"{100 * figures.failed / figures.ended:.1f}", "p50": span(figures.p50_s), "p95": span(figures.p95_s),
        "plot": sparkline(list(by_hour)),
    }  # fmt: skip


def _queue_line(queue: QueueBacklog) -> dict[str, Any]:
    return {
        "queue": queue.queue, "status": "paused" if queue.paused else "open", "waiting": f"{queue.waiting:,}",
        "running": f"{queue.running:,}", "scheduled": f"{queue.scheduled:,}", "oldest": span(queue.oldest_s),
    }  # fmt: skip


def span(seconds: float | None) -> str:
    """Return seconds as people read them: 4.2 ms, 31 s, 2 h 5 min."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
